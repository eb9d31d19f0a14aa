use super::*;
use crate::lower::{DENOISER, VAE};
use crate::pass::End;
use crate::weight::Weight;

fn layer(component: &'static str, name: &str, dims: &[usize], storage: Storage) -> Weight {
    Weight::of_checkpoint(component, format!("{name}.weight"), dims, storage)
}

fn weights() -> Weights {
    let mut first = layer(DENOISER, "blocks.0.time", &[96, 128], Storage::Linear);
    first.copies = vec!["blocks.1.time.weight".into()];
    let all = [
        layer(DENOISER, "patch", &[96, 4, 2, 2], Storage::Linear),
        first,
        layer(DENOISER, "blocks.0.bias", &[96], Storage::Vector),
        layer(DENOISER, "table", &[11, 96], Storage::Table),
        layer(VAE, "conv", &[32, 30, 3, 3], Storage::Conv),
        layer(VAE, "out", &[32, 32, 3, 3], Storage::Conv),
    ];
    all.into_iter().collect()
}

fn by(recipe: &Recipe) -> Vec<String> {
    let text = |d: &Decision| d.by.as_ref().map_or_else(|| "-".into(), Decider::to_string);
    recipe.decisions.iter().map(text).collect()
}

/// A configuration file that is removed again.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("packer-recipe-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_whose_default_is_f32_means_what_the_specification_does() {
    let spec = recipe(Some("f32"), None).unwrap();
    for (name, text) in [
        ("default.toml", "default = 'f32'"),
        ("every.json", r#"{"*": "f32"}"#),
        ("names.json", r#"{"patch": "f32", "blocks.0.time": "f32"}"#),
    ] {
        let file = File::new(name, text);
        let r = recipe(file.0.to_str(), None).unwrap();
        assert_eq!(stores(&r), stores(&spec), "{text}");
    }
    // The default says what a part's floats are, whatever entries say; the decoder's own beats the denoiser's.
    let file = File::new("mixed.toml", "default = 'f32'\n[layers]\n'blocks.*' = 'w4a8'");
    let r = recipe(file.0.to_str(), None).unwrap();
    assert_eq!(stores(&r), ["f32/32", "mse-4/8", "f32/32", "f32/32", "f32/32", "f32/32"]);
    assert_eq!(by(&r), ["default", "`blocks.*`", "-", "-", "-", "-"]);
    let r = recipe(Some("f16"), file_of(&File::new("vae.toml", "default = 'f32'"))).unwrap();
    assert_eq!(stores(&r)[3..], ["f16/32", "f32/32", "f32/32"]);
}

fn file_of(file: &File) -> Option<&str> {
    file.0.to_str()
}

#[test]
fn a_decision_says_what_made_it() {
    let file = File::new("by.toml", "default = 'w4a8'\n[layers]\n'blocks.1.time' = 'w3a8'");
    let r = recipe(file.0.to_str(), None).unwrap();
    assert_eq!(stores(&r)[..2], ["f16/32", "mse-3/8"]);
    assert_eq!(by(&r)[..3], ["default", "`blocks.1.time`", "-"]);
    assert!(r.decisions[0].note.as_ref().is_some_and(|note| note.contains("only 16 inputs")));
    assert_eq!(by(&recipe(Some("w4a8"), Some("f16")).unwrap())[4..], ["specification"; 2]);
}

/// The recipe for the weights above, none of which stands anywhere in particular.
fn new(requests: Requests) -> Result<Recipe> {
    Recipe::new(&weights(), &vec![Site::default(); weights().len()], requests)
}

fn recipe(denoiser: Option<&str>, autoencoder: Option<&str>) -> Result<Recipe> {
    new(Requests { denoiser, autoencoder, ..Requests::default() })
}

fn stores(recipe: &Recipe) -> Vec<String> {
    let text = |t: Treatment| format!("{}/{}", t.store.name(), t.activation_bits.unwrap_or(32));
    recipe.decisions.iter().map(|d| text(d.treatment)).collect()
}

#[test]
fn activations_may_be_asked_for_apart() {
    let requests = Requests { denoiser: Some("w4a16"), autoencoder: Some("w4a16"), ..Requests::default() };
    let of = |bits| new(Requests { activation_bits: bits, ..requests }).unwrap();
    assert_eq!(stores(&of(None))[1..], ["mse-4/32", "f32/32", "f16/32", "mse-4/32", "mse-4/32"]);
    let six = of(Some(6));
    assert_eq!(stores(&six)[1..], ["mse-4/6", "f32/32", "f16/32", "mse-4/32", "mse-4/32"]);
    assert_eq!(six.config, "transformer w4a16 with 6-bit activations, vae w4a16");
}

#[test]
fn activations_that_change_nothing_are_refused() {
    for (config, bits) in [("f16", 8), ("w4a8", 8), ("w4a6", 6)] {
        let requests = Requests { denoiser: Some(config), activation_bits: Some(bits), ..Requests::default() };
        let message = new(requests).unwrap_err().to_string();
        assert!(message.contains("--quant-act") && message.ends_with(&format!("got {config}")), "{message}");
    }
    let requests = Requests { denoiser: Some("w4a8"), activation_bits: Some(6), ..Requests::default() };
    assert!(new(requests).is_ok());
}

#[test]
fn a_specification_spares_small_layers_and_the_decoder() {
    let r = recipe(Some("w4a8"), None).unwrap();
    assert_eq!(stores(&r), ["f16/32", "mse-4/8", "f32/32", "f16/32", "f16/32", "f16/32"]);
    assert!(r.decisions[0].note.as_ref().unwrap().contains("only 16 inputs"));
    assert_eq!(r.config, "transformer w4a8, vae f16");
}

#[test]
fn floats_reach_every_component() {
    let r = recipe(Some("f32"), None).unwrap();
    assert!(stores(&r).iter().all(|s| s == "f32/32"));
    let r = recipe(None, None).unwrap();
    assert_eq!(stores(&r), ["f16/32", "f16/32", "f32/32", "f16/32", "f16/32", "f16/32"]);
    let r = recipe(Some("f32"), Some("f16")).unwrap();
    assert_eq!(stores(&r)[3..], ["f32/32", "f16/32", "f16/32"]);
}

#[test]
fn odd_convolutions_keep_float_activations() {
    let r = recipe(None, Some("w8a8:kmeans")).unwrap();
    assert_eq!(stores(&r)[4..], ["kmeans-8/32", "kmeans-8/8"]);
    assert!(r.decisions[4].note.as_ref().unwrap().contains("30 channels"));
}

#[test]
fn ends_and_what_is_hoisted_are_spared_unless_they_are_named() {
    let mut all = Weights::new();
    for name in ["first", "time", "middle", "last"] {
        all.push(layer(DENOISER, name, &[96, 128], Storage::Linear));
    }
    let site = |hoisted, end| Site { hoisted, end, ..Site::default() };
    let sites = [site(false, Some(End::First)), site(true, None), site(false, None), site(false, Some(End::Last))];
    let of =
        |config: &str| Recipe::new(&all, &sites, Requests { denoiser: Some(config), ..Requests::default() }).unwrap();
    let plain = of("w3a8:kmeans");
    assert_eq!(stores(&plain), ["kmeans-8/8", "kmeans-3/32", "kmeans-3/8", "kmeans-8/8"]);
    assert!(plain.decisions.iter().all(|d| d.treatment.codebook == CodebookType::Int8));
    let notes: Vec<_> = plain.decisions.iter().map(|d| d.note.as_deref().unwrap_or("")).collect();
    assert!(notes[0].contains("first layer") && notes[3].contains("last layer") && notes[2].is_empty(), "{notes:?}");
    assert!(notes[1].contains("depends on the timestep"), "{notes:?}");
    assert_eq!(stores(&of("w8a8:kmeans"))[0], "kmeans-8/8");
    assert!(of("w8a8:kmeans").decisions[0].note.is_none(), "nothing is changed");
    assert_eq!(stores(&of("w4a16")), ["mse-8/32", "mse-4/32", "mse-4/32", "mse-8/32"]);
    let file = File::new("ends.toml", "default = 'w3a8'\n[layers]\n'[tl]*' = 'w4a8'");
    assert_eq!(stores(&of(file.0.to_str().unwrap())), ["mse-8/8", "mse-4/8", "mse-3/8", "mse-4/8"]);
}

#[test]
fn what_an_import_leaves_in_floats_is_codes_only_by_name() {
    let weights: Weights =
        ["a", "b"].into_iter().map(|name| layer(DENOISER, name, &[8, 100], Storage::Linear)).collect();
    let site = Site { left: true, ..Site::default() };
    let config = File::new("left.json", r#"{"default": "w4a8", "layers": {"b": "w4a8"}}"#);
    let request = config.0.display().to_string();
    let requests = Requests { denoiser: Some(&request), ..Requests::default() };
    let recipe = Recipe::new(&weights, &[site; 2], requests).unwrap();
    let bits: Vec<u8> = recipe.decisions.iter().map(|d| d.treatment.store.bits()).collect();
    assert_eq!(bits, [16, 4]);
}
