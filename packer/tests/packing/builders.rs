//! The builders at true size: they want exactly the tensors that the published models have.

use aquatint::raw::backend::args::Element;
use aquatint::raw::plan::{Binding, Rules, plan};
use aquatint::raw::program::shape::TensorType;
use aquatint::raw::program::{Dims, Op, Program, Rate, Role};
use packer::lower::unet2d_condition::Context;
use packer::lower::{TEXT_ENCODERS, UNET, VAE, bert, clip, pixart, t5, unet2d_condition, vae};
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

fn transformer(sample_size: u32, sizes: bool) -> (Program, Weights) {
    let config = json!({
        "caption_channels": 4096, "sample_size": sample_size, "use_additional_conditions": sizes,
    });
    let config = pixart::Config::read("PixArtTransformer2DModel", config.as_object().unwrap(), &|_| false).unwrap();
    let mut weights = Weights::new();
    (pixart::lower(&config, &mut weights), weights)
}

#[test]
fn transformers_of_captions_want_the_published_tensors() {
    for size in [64, 128] {
        assert_eq!(list(&transformer(size, false).1), (603, "0ea90eb8035c6066".into()));
        assert_eq!(list(&transformer(size, true).1), (611, "b978318df97a57c0".into()));
    }
}

#[test]
fn encoders_of_whole_texts_want_the_published_tensors() {
    let folders = TEXT_ENCODERS.map(|(folder, _)| folder);
    for (class, config, hash) in [
        (
            "T5EncoderModel",
            json!({"d_model": 4096, "d_ff": 10240, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}),
            "298c1dfab485ffd4",
        ),
        (
            "MT5EncoderModel",
            json!({"d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24, "vocab_size": 250112}),
            "40dc359c86603862",
        ),
    ] {
        let config = t5::Config::read(folders[1], class, config.as_object().unwrap()).unwrap();
        for (length, inputs) in [(t5::Length::Own, 1), (t5::Length::Padded(256), 2)] {
            let mut weights = Weights::new();
            let has = |key: &str| key != "encoder.embed_tokens.weight";
            let program = t5::lower(&config, length, Role::TextEncoder2, &has, &|_, _| false, &mut weights).unwrap();
            assert_eq!((list(&weights), program.inputs.len()), ((219, hash.into()), inputs));
        }
        // By both names it is one table.
        let mut weights = Weights::new();
        t5::lower(&config, t5::Length::Own, Role::TextEncoder, &|_| true, &|_, _| true, &mut weights).unwrap();
        let copies: Vec<_> = weights.iter().flat_map(|w| w.copies.clone()).collect();
        assert_eq!((list(&weights), copies), ((219, hash.into()), vec!["encoder.embed_tokens.weight".to_owned()]));
        let other = t5::lower(&config, t5::Length::Own, Role::TextEncoder, &|_| true, &|_, _| false, &mut weights);
        assert_eq!(
            other.unwrap_err().to_string(),
            "text_encoder_2: encoder.embed_tokens.weight: expected what shared.weight is, which it stands for, got another table"
        );
    }
    let bilingual = json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "vocab_size": 47020,
    });
    let config = bert::Config::read(folders[0], "BertModel", bilingual.as_object().unwrap()).unwrap();
    let mut weights = Weights::new();
    bert::lower(&config, 77, Role::TextEncoder, &|_| false, &mut weights).unwrap();
    assert_eq!(list(&weights), (389, "96ee9d6d3dd4c05b".into()));
    let few = bert::lower(&config, 513, Role::TextEncoder, &|_| false, &mut weights).unwrap_err().to_string();
    assert!(few.ends_with("max_position_embeddings: expected at least the 513 tokens of a text, got 512"), "{few}");
}

/// Operations of matrix products by rate, and the names of ops of the loop, of one call of one sample.
fn work((program, weights): &(Program, Weights), latents: usize, tokens: usize) -> ([f64; 4], Vec<&'static str>) {
    let ty = |w: &Weight| TensorType { dims: w.dims(), integer: false, f32: true, codes: false, bytes: false };
    let types: Vec<TensorType> = weights.iter().map(ty).collect();
    let dims = Dims { batch: 1, conditions: 1, height: latents, width: latents, tokens, ..Dims::ONE };
    let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let rules = Rules { narrow: Element::F16, makes_codes: false, workspace: &|_| 0 };
    let plan = plan(program, &types, &binding, &rules).unwrap();
    let ops = &plan.phases[0].ops;
    let operations = |rate: usize| ops[rate].iter().map(|planned| planned.op.operations()).sum();
    let names = ops[Rate::Loop as usize].iter().map(|planned| program.nodes[planned.node].op.name()).collect();
    ([0, 1, 2, 3].map(operations), names)
}

/// What a step costs at true size, and what is worked out before the loop: all that depends on timestep, caption and size alone.
/// The sums are those of diffusers' networks, counted while they ran.
#[test]
fn captions_and_timesteps_are_worked_out_before_the_loop() {
    let d = 1152.0;
    for (sample_size, sizes, tokens, total) in
        [(64, false, 120, 1236.0e9), (128, true, 120, 6509.5e9), (128, false, 300, 6633.6e9)]
    {
        let (operations, names) = work(&transformer(sample_size, sizes), sample_size as usize, tokens as usize);
        let [bind, prompt, step, each] = operations;
        let sum: f64 = operations.iter().sum();
        assert!((sum / total - 1.0).abs() < 1e-4, "{sum:e}, not {total:e}");
        let tokens = f64::from(tokens);
        // The caption's MLP, and keys and values of all blocks; sizes are three numbers through two layers.
        let of_sizes = if sizes { 2.0 * 3.0 * (256.0 * d / 3.0 + d / 3.0 * d / 3.0) } else { 0.0 };
        assert_eq!(prompt, 2.0 * tokens * (4096.0 * d + d * d + 56.0 * d * d) + of_sizes);
        // The timestep's MLP, and the modulation of all blocks.
        assert_eq!((bind, step), (0.0, 2.0 * (256.0 * d + d * d + 6.0 * d * d)));
        assert_eq!(each, sum - prompt - step);
        // Two norms, two attentions and eight layers a block; patches, a norm and a layer around them.
        let count = |name: &str| names.iter().filter(|n| **n == name).count();
        let of = |name: &str, n: usize| assert_eq!(count(name), n, "{name}");
        of("linear", 28 * 8 + 2);
        of("layer_norm", 28 * 2 + 1);
        of("attention", 28 * 2);
        assert_eq!(names.len(), 28 * 12 + 3 + 2, "{names:?}");
    }
}

#[test]
fn sizes_share_the_layers_of_their_numbers() {
    let (program, weights) = transformer(128, true);
    let uses = |key: &str| {
        let tensor = weights.iter().position(|w| w.key() == key).unwrap();
        program.ops().filter(|op| matches!(op, Op::Linear(l) if l.weight.0 as usize == tensor)).count()
    };
    assert_eq!(uses("adaln_single.emb.resolution_embedder.linear_1.weight"), 2);
    assert_eq!(uses("adaln_single.emb.aspect_ratio_embedder.linear_2.weight"), 1);
}
