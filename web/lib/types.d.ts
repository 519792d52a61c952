/** What the server answers (its routes say what each number is), and what the components are given. */

export interface Columns {
  step: number[];
  loss: (number | null)[];
  mean_loss: (number | null)[];
  lr: (number | null)[];
  grad_norm: (number | null)[];
  seconds: (number | null)[];
}

export interface Curve {
  columns: Columns;
  steps: number;
  held_out: HeldOut[];
}

/** The losses of pictures that are not trained on, after a step: the mean, and that of each noise level t. */
export interface HeldOut {
  step: number;
  loss: number | null;
  t: number[];
  levels: (number | null)[];
  base: number | null;
  base_levels: (number | null)[];
  ema: number | null;
  ema_levels: (number | null)[];
  best_step: number | null;
  best_loss: number | null;
  pictures: number | null;
  text: string;
}

export interface Summary {
  id: string;
  name: string;
  state: "running" | "unfinished" | "finished" | "kept";
  node: string | null;
  graph?: string | null;
  step: number;
  total: number;
  loss: number | null;
  saved_at: number;
  started: number | null;
  samples: number;
  picture: string;
  lora: string | null;
  has_graph: boolean;
  can_continue: boolean;
  network: string;
  error: string | null;
}

export interface Latest {
  step: number;
  total: number;
  loss: number | null;
  mean_loss: number | null;
  lr: number | null;
  grad_norm: number | null;
  seconds: number | null;
  eta: number | null;
  peak_gb: number | null;
  pictures_per_second: number | null;
}

export interface Progress {
  stage: string;
  done: number;
  total: number;
  picture?: number;
  pictures?: number;
}

export interface Sample {
  step: number;
  index: number;
  prompt: string;
  file: string;
}

export interface Run extends Summary {
  settings: Record<string, unknown>;
  latest: Latest | null;
  progress: Progress | null;
  warnings: string[];
  sentence: string | null;
  plan: string | null;
  pictures: Sample[];
}

/** What is known of a run. note: the last thing that happened, a key of the words. outcome: how it ended while the page was open. */
export interface RunState {
  run: Run;
  columns: Columns;
  held_out: HeldOut[];
  note: { key: string; values: Record<string, unknown> } | null;
  outcome: string | null;
}

/** A part of the panel. */
export interface Part {
  element: HTMLElement;
  show(state: RunState): void;
  destroy?(): void;
}

/** A curve. color: the name of a CSS variable; width of the stroke, in pixels; alpha: how opaque it is; dash: lengths of its dashes; dot: the size of a mark. */
export interface Line {
  label: string;
  color: string;
  width?: number;
  alpha?: number;
  dash?: number[];
  dot?: number;
}

export type Curves = { name: string; columns: Columns }[];

/** How a chart is drawn. tell: shows the values at an index, or the last ones. */
export interface Drawing {
  width: number;
  height: number;
  axes: boolean;
  isLog: boolean;
  tell(at: number | null | undefined): void;
}

export interface Folder {
  name: string;
  root: "input" | "datasets";
  pictures: number;
  captions: number;
  shown: string[];
}

export type Word = "stop" | "save" | "preview" | "cancel";
export type Target = { run: string } | { node: string } | Record<string, never>;
export type Table = Record<string, string>;
export type Translate = (key: string, values?: Record<string, unknown>) => string;
export type Server = ReturnType<typeof import("./server").connect>;

/** ComfyUI, as far as the components need it; made in anima_trainer.js. */
export interface Comfy {
  fetchApi(path: string, init?: RequestInit): Promise<Response>;
  url(path: string): string;
  on(type: string, listener: (detail: any) => void): () => void;
  toast(kind: "success" | "info" | "warn" | "error", title: string, detail?: string): void;
  locale(): string;
  queue(prompt: object): Promise<unknown>;
  openGraph(workflow: object): Promise<unknown>;
  addNode(type: string, values: Record<string, unknown>): void;
  confirm(title: string, text: string): Promise<boolean>;
  enlarge(url: string, caption: string): void;
}

/** What a component is given. */
export interface Given {
  comfy: Comfy;
  server: Server;
  t: Translate;
}
