//! ViDiT-Q's settings of Open-Sora and PixArt, in the words of the networks' authors: which layer of the true networks gets what,
//! and what of a file is told to change nothing.

use crate::common::{Scratch, fixture};
use packer::config::{Choice, QConfig};
use packer::emit::{Options, explain};
use packer::lower::{pixart, stdit};
use packer::source::donors::Donors;
use packer::weight::Weights;
use serde_json::json;
use std::fs;

/// Layers of STDiT that the project's list for 16x512x512 leaves in floats.
const STDIT_FLOATS: [&str; 7] = [
    "pos_embed.proj",
    "adaln_single.emb.timestep_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2",
    "adaln_single.linear",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
    "proj_out",
];

fn names(weights: &Weights) -> Vec<String> {
    weights.iter().filter(|w| w.quantizable()).map(|w| w.layer()).collect()
}

fn stdit_layers() -> Vec<String> {
    let mut weights = Weights::new();
    let config = stdit::Config::read(stdit::CLASS, &serde_json::Map::new()).unwrap();
    stdit::lower(&config, &mut weights);
    names(&weights)
}

fn pixart_layers() -> Vec<String> {
    let mut weights = Weights::new();
    let config = json!({"caption_channels": 4096, "sample_size": 128, "use_additional_conditions": true});
    let config = pixart::Config::read("PixArtTransformer2DModel", config.as_object().unwrap(), &|_| true).unwrap();
    pixart::lower(&config, &mut weights);
    names(&weights)
}

fn parse(scratch: &Scratch, text: &str) -> QConfig {
    let path = scratch.path("config.yaml");
    fs::write(&path, text).unwrap();
    fs::write(scratch.path("remain_fp.txt"), "x_embedder\nt_block\nt_embedder\ny_embedder\nfinal_layer\n").unwrap();
    QConfig::from_file(&path).unwrap()
}

/// What each layer gets, by its name.
fn specs(choices: &[Choice], layers: &[String]) -> Vec<(String, String)> {
    layers.iter().zip(choices).map(|(layer, choice)| (layer.clone(), choice.spec.to_string())).collect()
}

fn resolve(config: &QConfig, layers: &[String]) -> Vec<(String, String)> {
    let names: Vec<&str> = layers.iter().map(String::as_str).collect();
    specs(&config.resolve(&names, &[]).unwrap(), layers)
}

/// The first generation's file for 16 frames of 512 pixels.
fn open_sora([weights, activations]: [u8; 2], smooth: &str) -> String {
    format!(
        "part_fp_list: './t2v/configs/quant/opensora/remain_fp.txt'
model: {{model_id: opensora, model_type: opensora}}
conditional: True
cfg_split: True
mixed_precision: [4, 6, 8]
calib_data: {{path: here, n_steps: 10, batch_size: 4, n_samples: 10}}
quant:
  weight:
    quantizer: {{n_bits: {weights}, per_group: channel, channel_wise: True, channel_dim: 0, scale_method: min_max, round_mode: nearest}}
  activation:
    quantizer:
      n_bits: {activations}
      per_group: token
      dynamic: True
      scale_method: min_max
      round_mode: nearest_ste
      running_stat: False
      sym: False
      n_spatial_token: 1024
      n_temporal_token: 16
      n_prompt: 120
      smooth_quant: {smooth}
  grad_checkpoint: False
resume_with_w_quantized: {{path: None}}
"
    )
}

const TIMED: &str = "{enable: True, channel_wise_scale_type: momentum_act_max, momentum: 0.95, alpha: [0.11, 0.11], timerange: [[0, 500], [501, 1000]]}";

#[test]
fn open_soras_settings_fit_stdit() {
    let (scratch, layers) = (Scratch::new("viditq-opensora"), stdit_layers());
    assert_eq!(layers.len(), 7 + 28 * 14);
    for (bits, smooth) in
        [([8, 8], "{enable: False, alpha: 0.625}"), ([6, 6], "{enable: True, alpha: 0.12}"), ([4, 8], TIMED)]
    {
        let config = parse(&scratch, &open_sora(bits, smooth));
        let [w, a] = bits;
        let expected = format!("w{w}a{a}:min_max");
        for (layer, spec) in resolve(&config, &layers) {
            let float = STDIT_FLOATS.contains(&&layer[..]);
            assert_eq!(spec, if float { "f16" } else { &expected }, "{layer}");
        }
        let names: Vec<&str> = layers.iter().map(String::as_str).collect();
        let notes = config.notes(&names);
        assert!(!notes.iter().any(|note| note.contains("matches no layer")), "{notes:?}");
        assert_eq!(config.transforms().smooth.len(), usize::from(smooth.contains("True")));
    }
}

/// The second generation's: expressions, by the same names, and widths by layer.
#[test]
fn expressions_find_layers_by_their_authors_names() {
    let (scratch, layers) = (Scratch::new("viditq-later-stdit"), stdit_layers());
    let text = r"
model: {model_id: opensora}
remain_fp_regex: '^(x_embedder|t_embedder|t_block|y_embedder|final_layer)'
mixed_precision: {weight: {layer_name_regex: [[], [], 'mlp\.fc[12]']}}
weight: {n_bits: [4, 8], i_bitwidth: 0, sym: False}
act: {n_bits: 8, sym: True}
viditq: {alpha: 0.5, layer_name_regex: 'attn_temp\.q'}
calib_data: {save_path: here}
";
    let config = parse(&scratch, text);
    for (layer, spec) in resolve(&config, &layers) {
        let expected = match &layer[..] {
            layer if STDIT_FLOATS.contains(&layer) => "f16",
            layer if layer.contains(".ff.") => "w8a8:min_max",
            _ => "w4a8:min_max",
        };
        assert_eq!(spec, expected, "{layer}");
    }
    let notes = config.notes(&[]);
    assert!(notes.iter().any(|note| note.starts_with("model, calib_data change nothing")), "{notes:?}");
}

/// Bits by step, as the project ships them: 8 in the first quarter, then 4 but for the MLP.
#[test]
fn bits_by_step_fit_stdit() {
    let (scratch, layers) = (Scratch::new("viditq-steps"), stdit_layers());
    let modules = [
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.proj",
        "attn_temp.q",
        "attn_temp.k",
        "attn_temp.v",
        "attn_temp.proj",
        "cross_attn.q_linear",
        "cross_attn.kv_linear",
        "cross_attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    ];
    let mut text = String::new();
    for (range, low) in [("14-10", 4), ("19-15", 8), ("4-0", 4), ("9-5", 4)] {
        text += &format!("{range}:\n");
        for block in 0..28 {
            for module in modules {
                let bits = if module.starts_with("mlp") { 8 } else { low };
                text += &format!("  model.blocks.{block}.{module}: {bits}\n");
            }
        }
    }
    text += "fp_layers: {19-15: [fc1_, fc2_], 14-10: [fc1_, fc2_], 9-5: [fc1_, fc2_], 4-0: [fc1_, fc2_]}\n";
    let config = parse(&scratch, &text);
    assert_eq!(config.phases().starts(), [0.0, 0.25], "the other three quarters agree");
    let config = config.with_activations(packer::config::Activations::Int(8));
    let names: Vec<&str> = layers.iter().map(String::as_str).collect();
    for (phase, choices) in config.resolve_phases(&names, &[]).unwrap().iter().enumerate() {
        for (layer, spec) in specs(choices, &layers) {
            let expected = match &layer[..] {
                layer if STDIT_FLOATS.contains(&layer) => "f16",
                layer if phase == 0 || layer.contains(".ff.") => "w8a8:min_max",
                _ => "w4a8:min_max",
            };
            assert_eq!(spec, expected, "{layer} in phase {phase}");
        }
    }
}

/// Of PixArt the project's scripts know which layers stay floats and which one is smoothed, and its files do not.
#[test]
fn pixarts_settings_fit_pixart() {
    let (scratch, layers) = (Scratch::new("viditq-pixart"), pixart_layers());
    assert_eq!(layers.len(), 287 + 4);
    let smooth = "{enable: True, channel_wise_scale_type: momentum_act_max, momentum: 0.95, alpha: 0.3}";
    let text = open_sora([4, 8], smooth).replace("opensora", "pixart");
    let text = text.replace("part_fp_list: './t2v/configs/quant/pixart/remain_fp.txt'", "smooth_quant_list: ''");
    let config = parse(&scratch, &text);
    for (layer, spec) in resolve(&config, &layers) {
        let float = !layer.starts_with("transformer_blocks.") && layer != "proj_out";
        assert_eq!(spec, if float { "f16" } else { "w4a8:min_max" }, "{layer}");
    }
    assert_eq!(config.transforms().smooth[0].layers, ["blocks.27.mlp.fc2"]);
    let names: Vec<&str> = layers.iter().map(String::as_str).collect();
    let notes = config.notes(&names);
    for expected in ["blocks.27.mlp.fc2 alone is smoothed", "csize_embedder and ar_embedder stay f16"] {
        assert_eq!(notes.iter().filter(|note| note.contains(expected)).count(), 1, "{notes:?}");
    }
    // A list that a file has is what counts.
    let config = parse(&scratch, &text.replace("smooth_quant_list: ''", "smooth_quant_list: blocks.3.mlp"));
    assert_eq!(config.transforms().smooth[0].layers, ["blocks.3.mlp"]);
}

/// Every field that changes nothing is told by its name, and those that do change something are not.
#[test]
fn fields_that_change_nothing_are_named() {
    let scratch = Scratch::new("viditq-notes");
    let told = |text: &str| parse(&scratch, text).notes(&[]).join("; ");
    let quantizer = "quant.activation.quantizer";
    let always = ["model", "conditional", "calib_data", "quant.grad_checkpoint", "cfg_split", "mixed_precision"];
    let of_weights = ["quant.weight.quantizer.channel_wise", "quant.weight.quantizer.channel_dim"];
    let of_acts =
        ["round_mode", "n_spatial_token", "n_temporal_token", "n_prompt", "scale_method", "running_stat", "sym"];
    let of_smoothing = ["smooth_quant.channel_wise_scale_type", "smooth_quant.momentum"];
    let of_acts: Vec<String> = of_acts.iter().chain(&of_smoothing).map(|name| format!("{quantizer}.{name}")).collect();
    let all: Vec<&str> = always.into_iter().chain(of_weights).chain(of_acts.iter().map(String::as_str)).collect();
    let on = told(&open_sora([4, 8], TIMED));
    let has = |notes: &str, name: &str| notes.split([' ', ',', ';', ':']).any(|word| word == name);
    all.iter().for_each(|name| assert!(has(&on, name), "{name} is not in {on}"));
    for name in ["n_bits", "per_group", "dynamic", "smooth_quant.alpha", "smooth_quant.timerange"] {
        assert!(!has(&on, &format!("{quantizer}.{name}")), "{name} is in {on}");
    }
    let off = told(&open_sora([4, 8], &TIMED.replace("True", "False")));
    for name in ["smooth_quant.alpha", "smooth_quant.timerange", "smooth_quant.momentum"] {
        assert!(has(&off, &format!("{quantizer}.{name}")), "{name} is not in {off}");
    }
    let floats = told(&open_sora([4, 16], "{enable: False}"));
    for name in ["per_group", "dynamic", "scale_method", "running_stat", "sym"] {
        assert!(has(&floats, &format!("{quantizer}.{name}")), "{name} is not in {floats}");
    }
    // In fixed ranges those are what counts.
    let fixed = open_sora([8, 8], "{enable: False}").replace("dynamic: True", "dynamic: False");
    let fixed = told(&fixed.replace("per_group: token", "per_group: False"));
    for name in ["scale_method", "running_stat", "sym"] {
        assert!(!has(&fixed, &format!("{quantizer}.{name}")), "{name} is in {fixed}");
    }
}

/// The same layers of a file are floats, whether it has matrices of queries, keys and values or, as the project splits them,
/// one for each.
#[test]
fn split_files_have_the_same_layers() {
    let scratch = Scratch::new("viditq-split");
    parse(&scratch, &open_sora([4, 8], "{enable: False}"));
    let plans = ["stdit.pth", "split.pth"].map(|file| {
        let autoencoder = Some(fixture("pixart/alpha/vae"));
        let options = Options {
            model: fixture("stdit").join(file),
            donors: Donors { autoencoder, text: vec![fixture("pixart/alpha")], without_text: true },
            q_config: Some(scratch.path("config.yaml").display().to_string()),
            ..Options::default()
        };
        let plan = explain(&options).unwrap();
        let layers = plan.layers.into_iter().filter(|layer| layer.name.starts_with("transformer/"));
        layers.map(|l| (l.name, l.method, l.activation_bits, l.decided_by)).collect::<Vec<_>>()
    });
    assert_eq!(plans[0], plans[1]);
    let floats = plans[0].iter().filter(|(_, method, ..)| method == "f16");
    let floats: Vec<&str> = floats.map(|(name, ..)| &name["transformer/".len()..]).collect();
    let sorted = |mut list: Vec<&str>| {
        list.sort_unstable();
        list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(sorted(floats), sorted(STDIT_FLOATS.to_vec()));
    assert!(plans[0].iter().all(|(_, method, act, _)| method == "f16" || (method == "min_max-4" && *act == 8)));
}
