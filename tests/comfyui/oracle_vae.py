"""ComfyUI's WanVAE on a given file's tensors."""

from comfy.ldm.wan.vae import WanVAE


def run(tensors, params):
    weights = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w.")}
    vae = WanVAE(dim=params["dim"], z_dim=16, temperal_downsample=[False, True, True])
    vae.load_state_dict(weights, strict=True)
    vae.eval()
    answer = {}
    for index in range(params["count"]):
        answer[f"z.{index}"] = vae.encode(tensors[f"image.{index}"].unsqueeze(2)).squeeze(2)
        answer[f"image.{index}"] = vae.decode(tensors[f"latent.{index}"].unsqueeze(2)).squeeze(2)
    return answer
