/** The part of uPlot that web/lib/chart.js uses. */
export default class uPlot {
  constructor(options: object, data: any[][], host: HTMLElement);
  static join(tables: any[][][]): any[][];
  root: HTMLElement;
  over: HTMLElement;
  data: any[][];
  setData(data: any[][]): void;
  setSize(size: { width: number; height: number }): void;
  redraw(rebuildPaths?: boolean): void;
  destroy(): void;
}
