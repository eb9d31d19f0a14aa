//! CLIP against transformers; see fixtures/make_clip.py.

mod formula;

use aquatint::Result;
use aquatint_evaluation::network::{Clip, ClipConfig, Weights, clip_score};
use formula::{Formula, picture};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::Path;

fn config(value: Value) -> ClipConfig {
    serde_json::from_value(value).expect("a configuration")
}

fn small(act: &str) -> Clip {
    let text = json!({
        "vocab_size": 98, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
        "max_position_embeddings": 22, "hidden_act": act
    });
    let vision = json!({
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30,
        "patch_size": 7, "hidden_act": act, "layer_norm_eps": 1e-4
    });
    let config = config(json!({ "text_config": text, "vision_config": vision, "projection_dim": 20 }));
    Clip::new(&config, &Formula(&[])).expect("all tensors")
}

/// Vectors of length 1 in f32, after three layers.
#[test]
fn directions_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip.safetensors");
    let file = std::fs::read(path).expect("the fixture");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let check = |name: String, got: Vec<f32>| {
        let expected = tensors.tensor(&name).expect("a tensor of the fixture");
        let expected = expected.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        assert_eq!(got.len(), expected.len());
        let worst = got.iter().zip(expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(worst < 1e-5, "{name}: {worst}");
    };
    for act in ["quick_gelu", "gelu"] {
        let clip = small(act);
        let long: Vec<u32> = [96].into_iter().chain(0..20).chain([97]).collect();
        for (i, tokens) in [&[96, 5, 17, 3, 97][..], &[96, 97], &long].into_iter().enumerate() {
            check(format!("{act}_text_{i}"), clip.text(tokens).expect("tokens of the table"));
        }
        for (i, size) in [[30, 30], [41, 67], [95, 33]].into_iter().enumerate() {
            let picture: Vec<f32> = picture(&format!("clip_{i}"), size, 4).iter().map(|v| v / 255.0).collect();
            check(format!("{act}_picture_{i}"), clip.picture(&picture, size));
        }
    }
    let clip = small("gelu");
    assert!(clip.text(&[]).is_err() && clip.text(&[98]).is_err() && clip.text(&[1; 23]).is_err());
    assert_eq!(clip_score(&[0.6, 0.8], &[1.0, 0.0]), 100.0 * f64::from(0.6f32));
    assert_eq!(clip_score(&[0.6, 0.8], &[-1.0, 0.0]), 0.0);
}

/// Tensors that are asked for, none of which is made.
#[derive(Default)]
struct Asked(RefCell<Vec<(String, Vec<usize>)>>);

impl Weights for Asked {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn shaped(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        self.0.borrow_mut().push((name.to_owned(), dims.to_vec()));
        Ok(vec![0.0; dims.iter().product()])
    }
}

/// `openai/clip-vit-base-patch32`, all of whose numbers are defaults, has 151,277,313 parameters, of which one is the temperature.
#[test]
fn the_published_sizes_have_their_tensors() {
    let asked = Asked::default();
    let clip = Clip::new(&config(json!({})), &asked).expect("all tensors");
    assert_eq!(clip.most_tokens(), 77);
    let asked = asked.0.into_inner();
    let parameters: usize = asked.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
    assert_eq!(parameters, 151_277_312);
    let dims = |name: &str| &asked.iter().find(|(n, _)| n == name).expect(name).1;
    assert_eq!(dims("vision_model.embeddings.patch_embedding.weight")[..], [768, 3, 32, 32]);
    assert_eq!(dims("vision_model.embeddings.position_embedding.weight")[..], [50, 768]);
    assert_eq!(dims("text_model.embeddings.token_embedding.weight")[..], [49408, 512]);
    assert_eq!(dims("visual_projection.weight")[..], [512, 768]);
}

#[test]
fn configurations_that_make_no_network_are_refused() {
    let refused = |value: Value| match Clip::new(&config(value), &Formula(&[])) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it is refused"),
    };
    let got = refused(json!({ "vision_config": { "num_attention_heads": 7 } }));
    assert_eq!(got, "CLIP's config.json: vision_config.hidden_size: expected a multiple of 7, the heads, got 768");
    let got = refused(json!({ "vision_config": { "patch_size": 225 } }));
    assert_eq!(got, "CLIP's config.json: vision_config.patch_size: expected at most 224, the picture, got 225");
    let got = refused(json!({ "text_config": { "num_attention_heads": 0 } }));
    assert!(got.starts_with("CLIP's config.json: text_config.num_attention_heads: expected 1 to "), "{got}");
}
