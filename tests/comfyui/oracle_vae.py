"""ComfyUI's WanVAE and latent format on a given file's tensors."""

from comfy.latent_formats import Wan21
from comfy.ldm.wan.vae import WanVAE


def run(tensors, params):
    weights = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w.")}
    vae = WanVAE(dim=params["dim"], z_dim=16, temperal_downsample=[False, True, True])
    vae.load_state_dict(weights, strict=True)
    vae.eval()
    answer, normal = {}, Wan21()
    for index in range(params["count"]):
        image, latent = (tensors[f"{name}.{index}"].unsqueeze(2) for name in ("image", "latent"))
        answer[f"latent.{index}"] = normal.process_in(vae.encode(image)).squeeze(2)
        answer[f"image.{index}"] = vae.decode(normal.process_out(latent)).squeeze(2)
    return answer
