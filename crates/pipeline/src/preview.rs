use burn::tensor::{DType, Tensor};

/// Red, green and blue of each of a latent's four channels.
pub type LatentColours = [[f32; 3]; 4];

/// Roughly what a latent looks like, without the decoder: `[height, width, 3]` in `0..1`, at the latent's size. Latents of
/// other than four channels give a grey image of their mean.
///
/// # Shapes
/// `latent`: `[1, height, width, channels]`
pub fn preview(latent: Tensor<4>, colours: LatentColours) -> Tensor<3> {
    let [_, height, width, channels] = latent.dims();
    let latent = latent.cast(DType::F32).reshape([height * width, channels]);
    let colours = match channels {
        4 => latent.clone().matmul(Tensor::<2>::from_floats(colours, &latent.device())),
        _ => latent.mean_dim(1).expand([height * width, 3]),
    };
    colours.reshape([height, width, 3]).div_scalar(2.0).add_scalar(0.5).clamp(0.0, 1.0)
}
