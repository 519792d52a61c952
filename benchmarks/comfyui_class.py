"""What ComfyUI gives its Anima class beside the sizes of a file (comfy/model_detection.py), for whoever makes one itself."""

ANIMA = dict(
    max_img_h=240,
    max_img_w=240,
    max_frames=128,
    in_channels=16,
    out_channels=16,
    patch_spatial=2,
    patch_temporal=1,
    concat_padding_mask=True,
    pos_emb_cls="rope3d",
    use_adaln_lora=True,
    rope_h_extrapolation_ratio=4.0,
    rope_w_extrapolation_ratio=4.0,
    rope_t_extrapolation_ratio=1.0,
    rope_enable_fps_modulation=False,
)
