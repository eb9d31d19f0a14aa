//! Published numbers of packed models, against counts made while diffusers' networks ran.

use crate::common::{Scratch, fixture, pack_as};
use aquatint::raw::format::Packed;
use packer::account::{Account, accounts};
use serde_json::Value;

fn account(scratch: &Scratch, model: &str, config: &str) -> Account {
    let path = scratch.path("m.aqt");
    pack_as(&fixture(model), Some(config), &path).unwrap();
    accounts(&Packed::open(&path).unwrap()).unwrap().remove(0)
}

#[test]
fn operations_and_sizes_are_those_of_diffusers_networks() {
    let scratch = Scratch::new("account");
    let counts: Value = serde_json::from_slice(&std::fs::read(fixture("macs.json")).unwrap()).unwrap();
    for model in ["sd/v1", "dit/d2"] {
        let count = |what: &str| counts[model][what].as_u64().unwrap();
        let (layers, attention, weights) = (count("layers"), count("attention"), count("weights"));
        let plain = account(&scratch, model, "f16");
        assert_eq!((plain.layer_macs, plain.attention_macs), (layers, attention), "{model}");
        assert_eq!(plain.bit_operations, 256.0 * (layers + 2 * attention) as f64);
        for (size, precision) in plain.sizes.iter().zip([16, 32]) {
            assert_eq!((size.full_bytes, size.quantized_bytes), (weights * precision / 8, weights * precision / 8));
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
