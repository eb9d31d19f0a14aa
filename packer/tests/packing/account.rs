//! Published numbers of packed models, against counts made while diffusers' networks ran.

use crate::common::{Scratch, fixture};
use aquatint::raw::format::Packed;
use packer::account::{Account, accounts};
use packer::emit::{Options, pack};
use packer::source::donors::Donors;
use serde_json::Value;

/// Of the denoiser, and then of whatever text encoders there are.
fn all_accounts(scratch: &Scratch, model: &str, config: &str) -> Vec<Account> {
    let output = scratch.path("m.aqt");
    let of_file = || Donors {
        autoencoder: Some(fixture("pixart/alpha/vae")),
        text: vec![fixture("pixart/alpha")],
        without_text: true,
    };
    let donors = if model.ends_with(".pth") { of_file() } else { Donors::default() };
    let q_config = Some(config.to_owned());
    let options = Options { model: fixture(model), donors, q_config, output: output.clone(), ..Options::default() };
    pack(&options, &mut |_| ()).unwrap_or_else(|e| panic!("{model}: {e}"));
    accounts(&Packed::open(&output).unwrap()).unwrap()
}

fn account(scratch: &Scratch, model: &str, config: &str) -> Account {
    all_accounts(scratch, model, config).remove(0)
}

#[test]
fn operations_and_sizes_are_those_of_diffusers_networks() {
    let scratch = Scratch::new("account");
    let counts: Value = serde_json::from_slice(&std::fs::read(fixture("macs.json")).unwrap()).unwrap();
    let models = counts.as_object().unwrap();
    assert_eq!(models.len(), 8);
    for model in models.keys() {
        let count = |what: &str| counts[model][what].as_u64().unwrap();
        let (layers, attention, weights) = (count("layers"), count("attention"), count("weights"));
        let plain = account(&scratch, model, "f16");
        assert_eq!((plain.layer_macs, plain.attention_macs), (layers, attention), "{model}");
        assert_eq!(plain.bit_operations, 256.0 * (layers + 2 * attention) as f64);
        for (size, precision) in plain.sizes.iter().zip([16, 32]) {
            let bytes = weights * precision / 8;
            assert_eq!((size.full_bytes, size.quantized_bytes), (bytes, bytes), "{model}");
            assert_eq!(size.average_bits, precision as f64);
        }
        // Every layer by name, so that none keeps 16 bits or gets 8.
        let all = scratch.path("all.json");
        std::fs::write(&all, r#"{"layers": {"*": "w4a8"}}"#).unwrap();
        let coded = account(&scratch, model, all.to_str().unwrap());
        let bits = 4.0 * coded.layer_macs as f64;
        let floats = 512.0 * attention as f64;
        // Convolutions of channels that are no multiple of 4 keep float activations.
        assert!((8.0 * bits + floats..=16.0 * bits + floats).contains(&coded.bit_operations), "{model}: {coded:?}");
        assert_eq!(coded.layer_macs, layers);
        assert!(coded.sizes[0].average_bits > 4.0 && coded.sizes[0].average_bits < 8.0, "{coded:?}");
    }
}

/// Text encoders read as many tokens as their texts have at most, each its own number.
#[test]
fn text_encoders_are_counted_at_their_own_length() {
    let scratch = Scratch::new("account-text");
    // One layer of queries, keys, values and results of 16 inner features from 20, and three matrices of 20 by 24 each; that
    // is what the configuration says.
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture("pixart/alpha/text_encoder/config.json")).unwrap()).unwrap();
    let number = |field: &str| config[field].as_u64().unwrap();
    let (d, inner, ff) = (number("d_model"), number("num_heads") * number("d_kv"), number("d_ff"));
    for (model, tokens) in [("pixart/alpha", 120), ("pixart/sigma", 300)] {
        let text = all_accounts(&scratch, model, "f16").remove(1);
        assert_eq!(text.network, "text encoder");
        let layers = number("num_layers");
        assert_eq!(text.layer_macs, layers * tokens * (4 * d * inner + 3 * d * ff), "{model}");
        assert_eq!(text.attention_macs, layers * tokens * tokens * inner, "{model}");
        assert_eq!(text.sizes[0].full_bytes, 2 * layers * (4 * d * inner + 3 * d * ff), "{model}");
    }
    let both: Vec<_> = all_accounts(&scratch, "sd/xl", "f16").iter().map(|a| a.network).collect();
    assert_eq!(both, ["denoiser", "text encoder", "second text encoder"]);
}

#[test]
fn whole_tera_are_counted_as_qua2sedimo_does() {
    // Too small for one, whatever is quantized.
    let scratch = Scratch::new("account-tera");
    assert_eq!(account(&scratch, "dit/d2", "w4a8").qua2sedimo_tera_bit_operations, 0);
}

#[test]
fn a_plan_is_what_packing_decides() {
    let scratch = Scratch::new("plan");
    for (model, config) in [("sd/v1", "w4a8:kmeans"), ("dit/d3odd", "w3a6"), ("layouts/church.ckpt", "w8a8")] {
        let options = packer::emit::Options {
            model: fixture(model),
            q_config: Some(config.into()),
            output: scratch.path("m.aqt"),
            ..Default::default()
        };
        let plan = packer::emit::explain(&options).unwrap();
        assert!(scratch.entries().is_empty(), "nothing is written");
        let report = packer::emit::pack(&options, &mut |_| ()).unwrap();
        assert_eq!(plan.average_bits, report.average_bits, "{model}");
        assert_eq!(plan.layers.len(), report.layers.len());
        for (plan, line) in plan.layers.iter().zip(&report.layers) {
            let meta = &line.meta;
            assert_eq!(
                (&plan.name, &plan.method, plan.activation_bits),
                (&meta.name, &meta.method, meta.activation_bits)
            );
            assert_eq!((&plan.decided_by, &plan.note, plan.weights), (&meta.decided_by, &meta.note, line.weights));
        }
        std::fs::remove_file(scratch.path("m.aqt")).unwrap();
    }
}
