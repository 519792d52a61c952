"""The templates, as short descriptions: what stands in which column, with which values, and where a recipe's values are from."""

# ruff: noqa: E501 (notes as they are shown)

from typing import Any

from tests.comfyui.layout import Column, Group, Node, Template

MAXKRUSE = "MaxKruse/anima-lora-trainer"
AUTHOR = "tdrussell/diffusion-pipe"
NOTE_WIDTH = 330
FILES = {
    "transformer": "anima-base-v1.0.safetensors",
    "vae": "qwen_image_vae.safetensors",
    "qwen": "qwen_3_06b_base.safetensors",
}
TAGS = {"shuffle_caption": True, "keep_tokens": 1, "caption_tag_dropout_rate": 0.1}
COSINE = {"lr_scheduler": "cosine"}
AUTHORS_OPTIMIZER = {  # main_example.toml
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.99,
    "optimizer.weight_decay": 0.01,
    "learning_rate": 2e-5,
    "lr_warmup_steps": 100,
}
MODELS = ("transformer", "vae", "qwen", "t5_tokenizer")

FOLDER_NOTE = """## {title}

1. **Pictures**: choose their folder in **Anima Dataset**. It lies in ComfyUI's **input** folder, with a **.txt** caption beside each picture.
2. **Run.** The adapter lands in **models/loras**; the group **Look** shows what it draws.

**Recipe** – {recipe}

**Values from** {source}

---

## {titel}

1. **图片**：在 **Anima 数据集** 中选择图片文件夹。它位于 ComfyUI 的 **input** 中，每张图片旁边有同名的 **.txt** 标注。
2. **运行**。适配器保存到 **models/loras**，**Look** 组显示它画出的图。

**参数** – {rezept}

**参数来源** {quelle}"""


def note(text: str, height: int) -> Group:
    return Group("", "", [Node("note", "MarkdownNote", {"text": text}, title="Read me", height=height)])


def loader() -> Node:
    return Node("models", "AnimaLoader", dict(FILES), models=tuple(FILES))


def folder(**values: Any) -> Node:
    return Node("dataset", "AnimaDatasetFolder", values)


def prompts(text: str, **values: Any) -> Node:
    return Node("previews", "AnimaSamplePrompts", {"prompts": text, **values})


def train(network: str = "network", name: str = "train", data: str = "dataset", models: str = "models", **values: Any) -> Node:
    links = {socket: f"{models}.{index}" for index, socket in enumerate(MODELS)}
    links |= {"dataset": data, "network": network, "optimizer": "optimizer", "samples": "previews"}
    return Node(name, "AnimaTrain", values, links)


def preview(of: str, name: str = "drawn", title: str = "What it draws", height: int = 330) -> Node:
    return Node(name, "PreviewImage", links={"images": f"{of}.3"}, title=title, height=height)


def results(height: int = 330) -> Group:
    loss = Node("loss", "LossGraphNode", {"filename_prefix": "loss"}, {"loss": "train.2"}, height=330)
    return Group("Look", "result", [preview("train", height=height), loss])


def learning(node: Node) -> Group:
    return Group("How it learns", "learning", [node])


def previews(node: Node) -> Group:
    return Group("What to draw on the way", "drawing", [node])


def folder_template(
    name: str, texts: dict[str, str], data: dict, network: Node, optimizer: dict, prompt: str, steps: dict
) -> Template:
    """Return a training on a folder of pictures."""
    return Template(
        name,
        [
            Column(NOTE_WIDTH, [note(FOLDER_NOTE.format(**texts), 470), previews(prompts(prompt))]),
            Column(
                280, [Group("Pictures", "pictures", [folder(**data)]), learning(Node("optimizer", "AnimaOptimizer", optimizer))]
            ),
            Column(280, [Group("Model files", "model", [loader()]), Group("Adapter", "learning", [network])]),
            Column(340, [Group("Train", "training", [train(**steps)])]),
            Column(290, [results()]),
        ],
    )


def style() -> Template:
    texts = {
        "title": "A style from about 20 pictures",
        "recipe": "rank 16, alpha 1, learning rate 1e-4 falling as a cosine, 1200 steps of 4 pictures. The first tag stays in front, the others are shuffled, a tenth is left out.",
        "source": f"{MAXKRUSE}, style training. AdamW stands for its AdamW8bit, which needs a package.",
        "titel": "约 20 张图片训练画风",
        "rezept": "rank 16，alpha 1，学习率 1e-4（余弦下降），1200 步，每步 4 张。第一个标签固定在前，其余打乱，并随机省略十分之一。",
        "quelle": f"{MAXKRUSE} 的画风训练。此处用 AdamW 代替需要另装软件包的 AdamW8bit。",
    }
    return folder_template(
        "Style from 20 pictures - Anima training",
        texts,
        TAGS,
        Node("network", "AnimaLoRANetwork", {"rank": 16, "alpha": 1.0}),
        {"learning_rate": 1e-4, **COSINE},
        "1girl, solo\nscenery, no humans",
        {"steps": 1200, "batch_size": 4, "output_name": "my_style"},
    )


def character() -> Template:
    texts = {
        "title": "A character",
        "recipe": "12 to 20 pictures whose captions begin with a trigger word; rank 8, alpha 1, learning rate 2e-4 falling as a cosine, 600 steps of 4 pictures. The trigger stays in front, the other tags are shuffled, a tenth is left out.",
        "source": f"{MAXKRUSE}, character training. AdamW stands for its AdamW8bit, which needs a package.",
        "titel": "训练角色",
        "rezept": "12 到 20 张图片，标注以触发词开头；rank 8，alpha 1，学习率 2e-4（余弦下降），600 步，每步 4 张。触发词固定在前，其余标签打乱，并随机省略十分之一。",
        "quelle": f"{MAXKRUSE} 的角色训练。此处用 AdamW 代替需要另装软件包的 AdamW8bit。",
    }
    return folder_template(
        "A character - train LoRA - Anima training",
        texts,
        TAGS,
        Node("network", "AnimaLoRANetwork", {"rank": 8, "alpha": 1.0}),
        {"learning_rate": 2e-4, **COSINE},
        "mychar, 1girl, solo, smile\nmychar, 1girl, from behind, city",
        {"steps": 600, "batch_size": 4, "output_name": "my_character"},
    )


def lokr() -> Template:
    texts = {
        "title": "A LoKr",
        "recipe": "both factors whole, the small one of size 4, modulation layers too; learning rate 2e-5, constant after 100 steps of warm-up. The 1000 steps are a beginning: look at what it draws.",
        "source": f"{AUTHOR} by Anima's author: its example of a LoKr and its advice for Anima.",
        "titel": "训练 LoKr",
        "rezept": "两个因子都用完整矩阵，小因子大小为 4，包含调制层；学习率 2e-5，预热 100 步后不变。1000 步只是起点，请看它画出的图。",
        "quelle": f"Anima 作者的 {AUTHOR}：其中的 LoKr 示例和对 Anima 的建议。",
    }
    return folder_template(
        "A LoKr - Anima training",
        texts,
        {},
        Node("network", "AnimaLoKrNetwork", {"factor": 4, "full_matrix": True, "targets": "+adaln"}),
        AUTHORS_OPTIMIZER,
        "1girl, solo\nscenery, no humans",
        {"steps": 1000, "output_name": "my_lokr"},
    )


TRY_NOTE = """## Try it

1. **Run.** Nothing else: tiny models and 36 drawn pictures are written into **output/anima_trainer/demo**.
2. **Watch.** In about a minute, without a graphics card, the tiny model learns which colours belong to which words. The first pictures are those of the untrained model.
3. **Run again.** The finished adapter is there at once.

Then open another template of Anima Trainer and train on your own pictures. The adapter from here fits only these tiny models.

**Values from** this pack's own demo: python -m anima_core demo

---

## 试一试

1. **运行**。无需其他操作：微型模型和 36 张绘制的图片会写入 **output/anima_trainer/demo**。
2. **观看**。大约一分钟，不需要显卡，微型模型就学会哪些词对应哪些颜色。最先显示的是未训练的模型画的图。
3. **再次运行**。训练好的适配器立即可用。

然后打开 Anima Trainer 的其他模板，用自己的图片训练。这里的适配器只适用于这些微型模型。

**参数来源** 本插件自带的演示：python -m anima_core demo"""
DEMO_PROMPTS = "\n".join(
    [
        "red circle, white background, drawing",
        "blue square, pink background, drawing",
        "yellow triangle, dark background, drawing",
        "green circle, pink background, drawing",
    ]
)
SMALL = {"width": 128, "height": 128, "steps": 20, "cfg": 2.0, "every_n_steps": 200}


def try_it() -> Template:
    network = Node("network", "AnimaLoRANetwork", {"rank": 32, "alpha": 32.0, "targets": "all"})
    optimizer = Node("optimizer", "AnimaOptimizer", {"learning_rate": 4e-3, **COSINE})
    settings = {"steps": 600, "batch_size": 8, "output_name": "anima_demo", "save_precision": "fp32"}
    return Template(
        "Try it - train LoRA - Anima training",
        [
            Column(NOTE_WIDTH, [note(TRY_NOTE, 620)]),
            Column(280, [previews(prompts(DEMO_PROMPTS, **SMALL)), learning(optimizer)]),
            Column(280, [Group("Tiny models", "model", [Node("demo", "AnimaDemo")]), Group("Adapter", "learning", [network])]),
            Column(340, [Group("Train", "training", [train(data="demo.4", models="demo", **settings)])]),
            Column(290, [results()]),
        ],
    )


PICTURES_NOTE = """## Pictures in the graph

1. **Pictures**: choose them in **Load Image**. Any node that makes pictures can take its place.
2. **Caption**: write in **Anima Dataset** what they show, or give a list with one caption for each picture.
3. **Run.** The adapter lands in **models/loras**; the group **Look** shows what it draws.

- A whole folder with captions: **Load Image-Text (from Folder)**.
- Several: put **Create List** between.

**Recipe** – rank 8, alpha 1, learning rate 2e-4 falling as a cosine, 1600 steps of one picture.

**Values from** MaxKruse/anima-lora-trainer, character training with batch size 1.

---

## 工作流中的图片

1. **图片**：在 **加载图像** 中选择。也可换成任何输出图片的节点。
2. **标注**：在 **Anima 数据集** 中写明图片内容，或为每张图片各给一条。
3. **运行**。适配器保存到 **models/loras**，**Look** 组显示它画出的图。

**参数** – rank 8，alpha 1，学习率 2e-4（余弦下降），1600 步，每步一张。

**参数来源** MaxKruse/anima-lora-trainer 的角色训练，批次大小为 1。"""


def pictures() -> Template:
    image = Node("picture", "LoadImage", {"image": "example.png"}, height=370)
    dataset = Node("dataset", "AnimaDatasetImages", {"captions": "1girl, solo"}, {"images": "picture"})
    network = Node("network", "AnimaLoRANetwork", {"rank": 8, "alpha": 1.0})
    optimizer = Node("optimizer", "AnimaOptimizer", {"learning_rate": 2e-4, **COSINE})
    return Template(
        "Pictures in the graph - Anima training",
        [
            Column(300, [note(PICTURES_NOTE, 500)]),
            Column(250, [Group("Pictures", "pictures", [image]), previews(prompts("1girl, solo"))]),
            Column(260, [Group("Captions", "pictures", [dataset]), learning(optimizer)]),
            Column(270, [Group("Model files", "model", [loader()]), Group("Adapter", "learning", [network])]),
            Column(310, [Group("Train", "training", [train(steps=1600, output_name="my_pictures")])]),
            Column(260, [results()]),
        ],
    )


TOML_NOTE = """## From a TOML

1. **File**: name a training file. It may be
   - **config.toml** of an earlier run, as **my_style-run/config.toml**: every run writes one into **output/anima_trainer**;
   - a file of sd-scripts or of a front end for it, put into ComfyUI's **input** folder.
2. **Run.** The adapter lands in **models/loras**. What has been trained already is there at once.

**Values from** the file itself.

---

## 使用 TOML

1. **文件**：填写训练文件，可以是
   - 以前训练的 **config.toml**，例如 **my_style-run/config.toml**：每次训练都会在 **output/anima_trainer** 里写一份；
   - sd-scripts 或其前端的文件，放入 ComfyUI 的 **input** 文件夹。
2. **运行**。适配器保存到 **models/loras**。已经训练过的立即可用。

**参数来源** 文件本身。"""


def from_toml() -> Template:
    node = Node("train", "AnimaTrainFromTOML", {"path": "my_style-run/config.toml"})
    return Template(
        "From a TOML - Anima training",
        [
            Column(NOTE_WIDTH, [note(TOML_NOTE, 620)]),
            Column(360, [Group("Train", "training", [node])]),
            Column(320, [results(300)]),
        ],
    )


COMPARE_NOTE = """## Compare two

1. **Pictures**: choose their folder in **Anima Dataset**, as in the other templates.
2. **Run.** A LoRA and a LoKr learn one after the other, from the same pictures, noise and seed; the group **Look** shows both.
3. **Compare anything**: change one setting of one of them and leave the rest.

**Recipe** – LoRA of rank 32, LoKr with whole factors of size 4; learning rate 2e-5, constant after 100 steps of warm-up, modulation layers too.

**Values from** tdrussell/diffusion-pipe by Anima's author.

---

## 比较两个适配器

1. **图片**：在 **Anima 数据集** 中选择文件夹，与其他模板相同。
2. **运行**。LoRA 与 LoKr 依次训练，图片、噪声和种子都相同；**Look** 组并排显示。
3. **比较任何设置**：只改其中一个的一项设置，其余不动。

**参数来源** Anima 作者的 tdrussell/diffusion-pipe。"""


def compare() -> Template:
    low = Node("lora", "AnimaLoRANetwork", {"rank": 32, "alpha": 32.0, "targets": "+adaln"})
    high = Node("lokr", "AnimaLoKrNetwork", {"factor": 4, "full_matrix": True, "targets": "+adaln"})
    shown = [preview("train_lora", "drawn_lora", "LoRA"), preview("train_lokr", "drawn_lokr", "LoKr")]
    return Template(
        "Compare two - Anima training",
        [
            Column(280, [note(COMPARE_NOTE, 500), Group("Pictures", "pictures", [folder()])]),
            Column(265, [Group("LoRA", "learning", [low]), Group("LoKr", "learning", [high])]),
            Column(
                280,
                [
                    Group(
                        "For both",
                        "model",
                        [
                            loader(),
                            Node("optimizer", "AnimaOptimizer", AUTHORS_OPTIMIZER),
                            prompts("1girl, solo\nscenery, no humans"),
                        ],
                    )
                ],
            ),
            Column(290, [Group("Train a LoRA", "training", [train("lora", "train_lora", output_name="compared_lora")])]),
            Column(290, [Group("Train a LoKr", "training", [train("lokr", "train_lokr", output_name="compared_lokr")])]),
            Column(260, [Group("Look", "result", shown)]),
        ],
    )


DRAW_NOTE = """## Train and draw

1. **Pictures**: choose their folder, as in the other templates.
2. **Run.** The adapter is trained and lands in **models/loras**; **KSampler** draws with it at once: **model** is the model with the adapter on it.
3. **Change** the prompt or the seed and run again: it only draws.

**Recipe** – rank 16, alpha 1, learning rate 1e-4 falling as a cosine, 1200 steps of 4 pictures.

**Values from** MaxKruse/anima-lora-trainer, style training. Drawn as in ComfyUI's template Anima Base v1.0.

---

## 训练并出图

1. **图片**：选择图片文件夹，与其他模板相同。
2. **运行**。训练好的适配器保存到 **models/loras**，**K采样器** 立即用它出图：**model** 就是带有适配器的模型。
3. **修改** 提示词或种子后再次运行：只需出图。

**参数** – rank 16，alpha 1，学习率 1e-4（余弦下降），1200 步，每步 4 张。

**参数来源** MaxKruse/anima-lora-trainer 的画风训练。出图参数取自 ComfyUI 模板 Anima Base v1.0。"""
NEGATIVE = "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia"  # of ComfyUI's own template
SAMPLING = {"steps": 30, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "seed": 42}  # as there


def stock_loaders() -> list[Node]:
    """Return ComfyUI's own loaders, which draw with the files that are trained on."""
    return [
        Node("unet", "UNETLoader", {"unet_name": FILES["transformer"]}, models=("transformer",)),
        Node("clip", "CLIPLoader", {"clip_name": FILES["qwen"], "type": "stable_diffusion"}, models=("qwen",)),
        Node("image_vae", "VAELoader", {"vae_name": FILES["vae"]}, models=("vae",)),
    ]


def what_to_draw() -> Group:
    positive = Node(
        "positive", "CLIPTextEncode", {"text": "1girl, solo"}, {"clip": "clip"}, title="Positive prompt", height=130
    )
    negative = Node("negative", "CLIPTextEncode", {"text": NEGATIVE}, {"clip": "clip"}, title="Negative prompt", height=130)
    return Group(
        "What to draw", "drawing", [positive, negative, Node("size", "EmptyLatentImage", {"width": 1024, "height": 1024})]
    )


def draw() -> Group:
    links = {"model": "train.1", "positive": "positive", "negative": "negative", "latent_image": "size"}
    decode = Node("decode", "VAEDecode", links={"samples": "sampler", "vae": "image_vae"})
    save = Node("drawn", "SaveImage", {"filename_prefix": "Anima"}, {"images": "decode"}, height=330)
    return Group("Draw", "result", [Node("sampler", "KSampler", SAMPLING, links), decode, save])


def train_and_draw() -> Template:
    links = {socket: f"models.{index}" for index, socket in enumerate(MODELS)}
    links |= {"dataset": "dataset", "network": "network", "optimizer": "optimizer", "model": "unet"}
    settings = {"steps": 1200, "batch_size": 4, "output_name": "my_style"}
    optimizer = Node("optimizer", "AnimaOptimizer", {"learning_rate": 1e-4, **COSINE})
    network = Node("network", "AnimaLoRANetwork", {"rank": 16, "alpha": 1.0})
    return Template(
        "Train and draw - Anima training",
        [
            Column(280, [note(DRAW_NOTE, 560), learning(optimizer)]),
            Column(255, [Group("Pictures", "pictures", [folder(**TAGS)]), Group("Adapter", "learning", [network])]),
            Column(
                255, [Group("Model files", "model", [loader()]), Group("The same files, to draw", "model", stock_loaders())]
            ),
            Column(290, [Group("Train", "training", [Node("train", "AnimaTrain", settings, links)])]),
            Column(250, [what_to_draw()]),
            Column(255, [draw()]),
        ],
    )


def templates() -> list[Template]:
    return [try_it(), style(), character(), train_and_draw(), lokr(), pictures(), compare(), from_toml()]
