//! The builders at true size: they want exactly the tensors that the published models have.

use aquatint::raw::program::Role;
use packer::lower::unet2d_condition::Context;
use packer::lower::{TEXT_ENCODERS, UNET, VAE, clip, unet2d_condition, vae};
use packer::weight::{Weight, Weights};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

/// Number and hash of the lines `name TAB (axes)`, sorted; axes as Python writes a tuple. The expected ones were taken from
/// models that diffusers 0.42.1 and transformers 5.23.0 made from the published configurations.
fn list(weights: &Weights) -> (usize, String) {
    let line = |w: &Weight| {
        let axes: Vec<_> = w.source_dims().iter().map(usize::to_string).collect();
        let comma = if axes.len() == 1 { "," } else { "" };
        format!("{}\t({}{comma})", w.key(), axes.join(", "))
    };
    let mut lines: Vec<_> = weights.iter().map(line).collect();
    lines.sort();
    (lines.len(), format!("{:016x}", xxh3_64(lines.join("\n").as_bytes())))
}

fn unet(config: Value, context: Context) -> (usize, String) {
    let config = unet2d_condition::Config::read(UNET, "UNet2DConditionModel", config.as_object().unwrap()).unwrap();
    let mut weights = Weights::new();
    unet2d_condition::lower(&config, Role::Denoiser, context, &mut weights);
    list(&weights)
}

#[test]
fn unets_want_the_published_tensors() {
    let v1 = json!({
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    assert_eq!(unet(v1, Context::Text { pooled: 0, numbers: 0 }), (686, "5cf6f279a9ffbae7".into()));
    let xl = json!({
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": true,
    });
    assert_eq!(unet(xl, Context::Text { pooled: 1280, numbers: 6 }), (1680, "07304cf5ef9ef542".into()));
}

#[test]
fn text_encoders_want_the_published_tensors() {
    let [(first, _), (second, _)] = TEXT_ENCODERS;
    let small = json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
    });
    let config = clip::Config::read(first, "CLIPTextModel", small.as_object().unwrap()).unwrap();
    let mut weights = Weights::new();
    clip::lower(&config, clip::Output::Normed, Role::TextEncoder, &|_| false, &mut weights);
    assert_eq!(list(&weights), (196, "bf3fad2f036bd7bc".into()));
    let big = json!({
        "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
        "num_hidden_layers": 32, "projection_dim": 1280,
    });
    let config = clip::Config::read(second, "CLIPTextModelWithProjection", big.as_object().unwrap()).unwrap();
    let mut weights = Weights::new();
    let prefixed = |key: &str| key.starts_with("text_model.");
    clip::lower(&config, clip::Output::PenultimateAndPooled, Role::TextEncoder2, &prefixed, &mut weights);
    assert_eq!(list(&weights), (517, "4b8328c03c5966a4".into()));
}

#[test]
fn autoencoders_want_the_published_tensors() {
    let config = json!({
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    let config = vae::Config::read(VAE, "AutoencoderKL", config.as_object().unwrap()).unwrap();
    let mut weights = Weights::new();
    vae::lower_encoder(&config, &|_| false, &mut weights);
    vae::lower(&config, &|_| false, &mut weights);
    assert_eq!(list(&weights), (248, "c150854edf694d48".into()));
}
