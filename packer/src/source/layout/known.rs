//! The published models that single files hold, at their true sizes.

use super::autoencoder::Autoencoder;
use super::dit::Dit;
use super::hunyuan::Hunyuan;
use super::latte::Latte;
use super::pipeline::{self, Published};
use super::pixart::Pixart;
use super::scheduler::Betas;
use super::stdit::Stdit;
use super::text::TextEncoder;
use super::unet::{Added, Attention, Conventions, Heads, Unet};
use aquatint::error::Error;
use std::collections::BTreeSet;

/// Makes a pipeline's description.
pub type Describe = fn() -> Published;

/// What people call them, and what they are.
pub const ALL: [(&str, Describe); 15] = [
    ("DDIM CIFAR-10", ddim_cifar10),
    ("LDM-4 (bedrooms, faces)", ldm4),
    ("LDM-8 (churches)", church),
    ("LDM-4 ImageNet", cin256_v2),
    ("LDM-8 ImageNet", cin256_f8),
    ("Stable Diffusion 1.x", sd1),
    ("SDXL base", sdxl),
    ("SDXL refiner", sdxl_refiner),
    ("DiT", dit_xl_2),
    ("Hunyuan-DiT 1.1", hunyuan_1_1),
    ("Hunyuan-DiT 1.2", hunyuan_1_2),
    ("PixArt-alpha 512", pixart_alpha_512),
    ("PixArt-alpha 1024", pixart_alpha_1024),
    ("PixArt-Sigma 1024", pixart_sigma_1024),
    ("Open-Sora 1.0", open_sora_16_512),
];

/// Song et al. 2021 on CIFAR-10.
pub fn ddim_cifar10() -> Published {
    let unet = Unet {
        sample_size: 32,
        in_channels: 3,
        out_channels: 3,
        channels: vec![128, 256, 256, 256],
        depths: vec![0, 1, 0, 0],
        conventions: Conventions::Ddim,
        ..latent_unet(Attention::Pixels(Heads::Count(1)))
    };
    pipeline::ddim(&unet, "")
}

/// Bedrooms, CelebA-HQ and FFHQ of Rombach et al. 2022, which have one configuration.
pub fn ldm4() -> Published {
    let unet = Unet {
        in_channels: 3,
        out_channels: 3,
        channels: vec![224, 448, 672, 896],
        depths: vec![0, 1, 1, 1],
        ..latent_unet(Attention::Pixels(Heads::Features(32)))
    };
    pipeline::unconditional(&unet, Some(&vq_f4()), Betas::scaled(0.0015, 0.0195))
}

/// Churches of Rombach et al. 2022.
pub fn church() -> Published {
    let unet = Unet {
        sample_size: 32,
        channels: vec![192, 384, 384, 768, 768],
        depths: vec![1, 1, 1, 1, 0],
        scale_shift: true,
        resnet_resampling: true,
        ..latent_unet(Attention::Pixels(Heads::Count(8)))
    };
    let vae = Autoencoder { sample_size: 256, scaling_factor: 0.2458, ..kl_f8() };
    pipeline::unconditional(&unet, Some(&vae), Betas::scaled(0.0015, 0.0155))
}

/// The newer ImageNet model of Rombach et al. 2022.
pub fn cin256_v2() -> Published {
    let unet = Unet {
        in_channels: 3,
        out_channels: 3,
        channels: vec![192, 384, 576, 960],
        depths: vec![0, 1, 1, 1],
        ..latent_unet(Attention::Context { features: 512, linear: false, heads: Heads::Count(1) })
    };
    pipeline::class_conditional(&unet, Some(&vq_f4()), 1001, Betas::scaled(0.0015, 0.0195))
}

/// The older one.
pub fn cin256_f8() -> Published {
    let unet = Unet {
        sample_size: 32,
        channels: vec![256, 512, 1024],
        depths: vec![1, 1, 1],
        ..latent_unet(Attention::Context { features: 512, linear: false, heads: Heads::Features(32) })
    };
    pipeline::class_conditional(&unet, Some(&vq_f8()), 1000, Betas::scaled(0.0015, 0.0195))
}

/// Stable Diffusion 1.1 to 1.5.
pub fn sd1() -> Published {
    let unet = Unet {
        channels: vec![320, 640, 1280, 1280],
        depths: vec![1, 1, 1, 0],
        ..latent_unet(Attention::Context { features: 768, linear: false, heads: Heads::Count(8) })
    };
    let text = "cond_stage_model.transformer.text_model.";
    pipeline::stable_diffusion(&unet, Some(&kl_f8()), Some((&clip_l(), text)), Betas::scaled(0.00085, 0.012))
}

/// The base model of Stable Diffusion XL 1.0.
pub fn sdxl() -> Published {
    let unet = Unet {
        sample_size: 128,
        channels: vec![320, 640, 1280],
        depths: vec![0, 2, 10],
        mid_depth: 10,
        added: Some(Added { features: 2816, per_number: 256 }),
        ..latent_unet(Attention::Context { features: 2048, linear: true, heads: Heads::Features(64) })
    };
    let text = "conditioner.embedders.0.transformer.text_model.";
    pipeline::sdxl(&unet, Some(&vae_xl()), Some(((&clip_l(), text), &clip_big_g())))
}

/// SDXL 1.0's refiner.
pub fn sdxl_refiner() -> Published {
    let unet = Unet {
        sample_size: 128,
        channels: vec![384, 768, 1536, 1536],
        depths: vec![0, 4, 4, 0],
        mid_depth: 4,
        added: Some(Added { features: 2560, per_number: 256 }),
        ..latent_unet(Attention::Context { features: 1280, linear: true, heads: Heads::Features(64) })
    };
    pipeline::refiner(&unet, Some(&vae_xl()), Some(&clip_big_g()))
}

/// DiT-XL/2 of Peebles & Xie 2023 for 256 pixels.
pub fn dit_xl_2() -> Published {
    pipeline::class_transformer(&Dit {
        in_channels: 4,
        out_channels: 8,
        features: 1152,
        layers: 28,
        patch: 2,
        classes: 1000,
        sample_size: 32,
        frames: None,
    })
}

/// Hunyuan-DiT 1.0 and 1.1 of Li et al. 2024, which read a style and sizes.
pub fn hunyuan_1_1() -> Published {
    pipeline::hunyuan(&Hunyuan { styled: true, ..hunyuan() })
}

/// Hunyuan-DiT 1.2.
pub fn hunyuan_1_2() -> Published {
    pipeline::hunyuan(&hunyuan())
}

/// Hunyuan-DiT 1.1 as diffusers has it, with its autoencoder and without text encoders.
pub fn hunyuan_1_1_directory() -> Published {
    hunyuan_1_1().in_directory(&vae_xl())
}

/// The same of 1.2.
pub fn hunyuan_1_2_directory() -> Published {
    hunyuan_1_2().in_directory(&vae_xl())
}

fn hunyuan() -> Hunyuan {
    Hunyuan {
        in_channels: 4,
        features: 1408,
        head: 88,
        inner: 6144,
        layers: 40,
        patch: 2,
        tokens: [77, 256],
        text_features: [1024, 2048],
        pooled: 1024,
        styled: false,
    }
}

/// PixArt-alpha of Chen et al. 2023 for 512 pixels.
pub fn pixart_alpha_512() -> Published {
    pipeline::text_transformer(&pixart())
}

/// The same for images of about 1024 pixels of any proportion, which reads their size.
pub fn pixart_alpha_1024() -> Published {
    pipeline::text_transformer(&Pixart { sample_size: 128, sizes: true, ..pixart() })
}

/// PixArt-Sigma of Chen et al. 2024 for 1024 pixels.
pub fn pixart_sigma_1024() -> Published {
    pipeline::text_transformer(&Pixart { sample_size: 128, tokens: 300, ..pixart() })
}

/// Open-Sora 1.0 (hpcaitech, 2024) for 16 frames of 512 pixels, and the same for 256 pixels but for positions.
pub fn open_sora_16_512() -> Published {
    pipeline::video_transformer(&Stdit { frame: pixart(), frames: 16, space_scale: 1.0, time_scale: 1.0, split: false })
}

/// Latte-1 of Ma et al. 2024 for 16 frames of 512 pixels, as diffusers has it, with its autoencoder and without a text encoder.
pub fn latte_directory() -> Published {
    pipeline::interleaved_transformer(&Latte { frame: pixart(), frames: 16 }).in_directory(&kl_f8()).captioned()
}

/// PixArt-alpha for 512 pixels as diffusers has it, with its autoencoder and without a text encoder.
pub fn pixart_alpha_512_directory() -> Published {
    pixart_alpha_512().in_directory(&kl_f8()).captioned()
}

/// PixArt-Sigma for 1024 pixels as diffusers has it, with its autoencoder and without a text encoder.
pub fn pixart_sigma_1024_directory() -> Published {
    pixart_sigma_1024().in_directory(&vae_xl()).captioned()
}

fn pixart() -> Pixart {
    Pixart {
        in_channels: 4,
        out_channels: 8,
        features: 1152,
        layers: 28,
        patch: 2,
        caption_features: 4096,
        tokens: 120,
        sample_size: 64,
        sizes: false,
    }
}

/// What most UNets of latent diffusion have in common.
fn latent_unet(attention: Attention) -> Unet {
    Unet {
        sample_size: 64,
        in_channels: 4,
        out_channels: 4,
        channels: Vec::new(),
        layers: 2,
        attention,
        depths: Vec::new(),
        mid_depth: 1,
        scale_shift: false,
        resnet_resampling: false,
        added: None,
        conventions: Conventions::Latent,
    }
}

/// The autoencoder of Stable Diffusion.
fn kl_f8() -> Autoencoder {
    Autoencoder {
        image_channels: 3,
        latent_channels: 4,
        channels: vec![128, 256, 512, 512],
        layers: 2,
        attend: vec![false; 4],
        codebook: None,
        encoder: true,
        sample_size: 512,
        scaling_factor: 0.18215,
    }
}

/// The same, trained again.
fn vae_xl() -> Autoencoder {
    Autoencoder { sample_size: 1024, scaling_factor: 0.13025, ..kl_f8() }
}

fn vq_f4() -> Autoencoder {
    Autoencoder {
        latent_channels: 3,
        channels: vec![128, 256, 512],
        attend: vec![false; 3],
        codebook: Some([8192, 3]),
        sample_size: 256,
        scaling_factor: 1.0,
        ..kl_f8()
    }
}

fn vq_f8() -> Autoencoder {
    Autoencoder {
        channels: vec![128, 256, 256, 512],
        attend: vec![false, false, false, true],
        codebook: Some([16384, 4]),
        sample_size: 256,
        scaling_factor: 1.0,
        ..kl_f8()
    }
}

/// OpenAI's CLIP ViT-L/14.
fn clip_l() -> TextEncoder {
    TextEncoder {
        vocabulary: 49408,
        tokens: 77,
        features: 768,
        inner: 3072,
        layers: 12,
        projection: None,
        activation: "quick_gelu",
    }
}

/// The text encoder of OpenCLIP's ViT-bigG/14, the second of Stable Diffusion XL.
fn clip_big_g() -> TextEncoder {
    TextEncoder { features: 1280, inner: 5120, layers: 32, projection: Some(1280), activation: "gelu", ..clip_l() }
}

/// The error of a file that is none of the known models: which come near, and what they lack.
pub(super) fn unknown(file: &str, keys: &[&str]) -> Error {
    let have: BTreeSet<&str> = keys.iter().copied().collect();
    let mut near: Vec<_> = ALL
        .iter()
        .filter_map(|(label, published)| {
            let names = published().file();
            let found = names.iter().filter(|(name, _)| have.contains(&name[..])).count();
            let missing = names.iter().map(|(name, _)| name).find(|name| !have.contains(&name[..])).cloned();
            // Of all names on either side.
            let share = 100 * found / (names.len() + have.len() - found).max(1);
            (found > 0).then_some((share, *label, missing))
        })
        .collect();
    near.sort_by_key(|(share, ..)| std::cmp::Reverse(*share));
    let lines = near.iter().take(3).map(|(share, label, missing)| {
        let lacks = missing.as_ref().map_or(String::new(), |name| format!(", no {name}"));
        format!("{share} % in common with {label}{lacks}")
    });
    let got = match lines.collect::<Vec<_>>() {
        lines if lines.is_empty() => {
            format!("{} tensors of none of them: {}...", keys.len(), keys.first().unwrap_or(&"nothing"))
        }
        lines => lines.join("; "),
    };
    let labels: Vec<_> = ALL.iter().map(|(label, _)| *label).collect();
    Error::request(format!("model {file}"), format!("a model in a known layout: {}", labels.join(", ")), got)
}
