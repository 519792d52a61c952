"""Adapters side by side: each one's picture of each prompt at each strength, in one labelled grid."""
