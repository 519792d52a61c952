"""The templates' notes, each in English and Chinese."""

# ruff: noqa: E501 (texts as they are shown)

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
