"""The templates, as short descriptions: what stands in which column, with which values, and where a recipe's values are from."""

# ruff: noqa: E501 (texts as they are shown)

from typing import Any

from tests.comfyui.layout import Column, Group, Node, Template
from tests.comfyui.template_notes import COMPARE_NOTE, DRAW_NOTE, FOLDER_NOTE, PICTURES_NOTE, TOML_NOTE, TRY_NOTE

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
            Column(280, [note(DRAW_NOTE, 560), Group("Adapter", "learning", [network])]),
            Column(255, [Group("Pictures", "pictures", [folder(**TAGS)]), learning(optimizer)]),
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
