//! Networks that a model takes from another one: an autoencoder, text encoders. The other is a diffusers directory, the
//! folder of one network, or a single file.

use super::diffusers::{Component, Model, Object, open_component, text};
use super::layout::{self, Elsewhere, Member};
use super::{Checkpoint, SourceFile, read_json, tokenizer};
use aquatint::error::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Folders of autoencoders.
const AUTOENCODERS: [&str; 2] = ["vae", "vqvae"];
/// Folders of text encoders.
const ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];

/// Where a model's networks come from that are not its own.
#[derive(Clone, Debug, Default)]
pub struct Donors {
    /// The model that gives the autoencoder.
    pub autoencoder: Option<PathBuf>,
    /// The models that give the text encoders.
    pub text: Vec<PathBuf>,
    /// Whether text encoders are left out; see [`Model::without_text`].
    pub without_text: bool,
}

impl Donors {
    /// Which networks they give.
    pub fn elsewhere(&self) -> Elsewhere {
        Elsewhere { autoencoder: self.autoencoder.is_some(), text: !self.text.is_empty() }
    }

    /// Whether they give the network in folder `name`.
    pub fn have(&self, name: &str) -> bool {
        AUTOENCODERS.contains(&name) && self.autoencoder.is_some() || ENCODERS.contains(&name) && !self.text.is_empty()
    }
}

/// Whether folder `name` is that of a text encoder.
pub(super) fn is_text_encoder(name: &str) -> bool {
    ENCODERS.contains(&name)
}

/// The option by which the network in folder `name` is taken from another model, if there is one.
pub(super) fn option(name: &str) -> Option<&'static str> {
    match name {
        _ if AUTOENCODERS.contains(&name) => Some("--vae"),
        _ if ENCODERS.contains(&name) => Some("--text-encoder"),
        _ => None,
    }
}

/// Adds what `donors` give to `model`, which has pipeline class `model.class` and lacks these networks.
///
/// # Errors
/// [`Error::Request`] if the pipeline has no such network, or the other model; and what opening it says.
pub(super) fn donate(model: &mut Model, donors: &Donors) -> Result<()> {
    let autoencoder = donors.autoencoder.iter().map(|path| (path, AUTOENCODERS));
    let encoders = donors.text.iter().map(|path| (path, ENCODERS));
    for (path, names) in autoencoder.chain(encoders) {
        let option = option(names[0]).unwrap_or_default();
        let takes: Vec<_> = names.into_iter().filter(|name| model.takes(name)).collect();
        if takes.is_empty() {
            return Err(Error::request(option, format!("none: a {} has no {}", model.class, names[0]), path.display()));
        }
        let given = if path.is_file() {
            of_file(model, path, &takes)?
        } else if path.join("model_index.json").is_file() {
            of_pipeline(model, path, &takes)?
        } else {
            of_folder(model, path, &takes)?
        };
        if given.is_empty() {
            let expected = format!("a model with a {}, as a {} reads it", takes.join(" or "), model.class);
            return Err(Error::request(format!("{option} {}", path.display()), expected, "none"));
        }
        for component in given {
            if model.find(&component.name).is_some() {
                let expected = format!("each network once, {} too", component.name);
                return Err(Error::request(option, expected, "two"));
            }
            model.components.push(component);
        }
    }
    Ok(())
}

/// Tells the denoiser of a single file how large its latents are, which the autoencoder that `model` has got decides:
/// images have the size of the published models of this kind.
pub(super) fn fit_latents(model: &mut Model) {
    let pixels = match &model.class[..] {
        class if class.contains("XL") => 1024,
        class if class.contains("StableDiffusion") => 512,
        _ => 256,
    };
    let levels = |c: &Component| c.config.get("block_out_channels").and_then(Value::as_array).map(Vec::len);
    let autoencoder = model.components.iter().find(|c| AUTOENCODERS.contains(&&c.name[..]));
    let Some(levels @ 1..=8) = autoencoder.and_then(levels) else { return };
    for denoiser in model.components.iter_mut().filter(|c| c.name == "unet") {
        if denoiser.config.contains_key("sample_size") {
            denoiser.config.insert("sample_size".into(), (pixels >> (levels - 1)).into());
        }
    }
}

/// The networks in folders `takes` of the diffusers directory at `root`, and their tokenizers.
fn of_pipeline(model: &mut Model, root: &Path, takes: &[&str]) -> Result<Vec<Component>> {
    let index: Object = read_json(root, "model_index.json", &mut Vec::new())?;
    let mut given = Vec::new();
    for name in takes.iter().filter(|name| root.join(name).is_dir()) {
        given.push(open_component(root, name, &index, &mut model.sources)?);
        let tokenizer = name.replace("text_encoder", "tokenizer");
        if tokenizer != *name && root.join(&tokenizer).is_dir() {
            let file = tokenizer::read(root, &tokenizer, &mut model.sources)?;
            model.tokenizers.retain(|(folder, _)| *folder != tokenizer);
            model.tokenizers.push((tokenizer, file));
        }
    }
    Ok(given)
}

/// The network in the folder `root`, which has its `config.json`.
fn of_folder(model: &mut Model, root: &Path, takes: &[&str]) -> Result<Vec<Component>> {
    if !root.join("config.json").is_file() {
        let expected = "a diffusers directory, a folder with config.json, or a checkpoint file";
        let got = if root.is_dir() { "a directory without either" } else { "no such file or directory" };
        return Err(Error::request(root.display().to_string(), expected, got));
    }
    let mut sources = Vec::new();
    let config: Object = read_json(root, "config.json", &mut sources)?;
    let weights = Checkpoint::open(root, ".", &mut sources)?;
    Ok(configured(model, config, weights, sources, takes).into_iter().collect())
}

/// The networks in the single file at `path`.
fn of_file(model: &mut Model, path: &Path, takes: &[&str]) -> Result<Vec<Component>> {
    let mut sources = Vec::new();
    let file = layout::open_file(path, &mut sources)?;
    let members = match AUTOENCODERS.contains(&takes[0]) {
        true => layout::autoencoder(&file, &model.class)?.into_iter().collect(),
        false => layout::text_encoders(&file, model.class.contains("XL"))?,
    };
    let beside = path.with_file_name("config.json");
    // As diffusers and transformers name what their folders hold.
    let diffusers = [
        "decoder.up_blocks.0.resnets.0.norm1.weight",
        "text_model.final_layer_norm.weight",
        "final_layer_norm.weight",
        "encoder.final_layer_norm.weight",
    ];
    if diffusers.iter().any(|key| file.has(key)) && beside.is_file() {
        let root = path.parent().unwrap_or(Path::new(""));
        let config: Object = read_json(root, "config.json", &mut sources)?;
        return Ok(configured(model, config, file, sources, takes).into_iter().collect());
    }
    if members.is_empty() && file.has(diffusers[0]) {
        let got = "diffusers' names without one; name the folder that the file is from";
        return Err(Error::request(path.display().to_string(), "a config.json beside it", got));
    }
    let mut given = Vec::new();
    for Member { name, class, config, entries, .. } in members.into_iter().filter(|m| takes.contains(&m.name)) {
        let weights = file.renamed(name, &entries)?;
        given.push(Component { name: name.to_owned(), class: class.to_owned(), config, weights });
    }
    if let Some(first) = given.first() {
        record(model, sources, &first.name);
    }
    Ok(given)
}

/// The network of this configuration, under the first of the names `takes` that fits its class.
fn configured(
    model: &mut Model,
    config: Object,
    weights: Checkpoint,
    sources: Vec<SourceFile>,
    takes: &[&str],
) -> Option<Component> {
    let architecture = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let class = text(&config, "_class_name").or(architecture).unwrap_or_default().to_owned();
    // Only the second text encoder projects.
    let second = class.ends_with("WithProjection") || class == "VQModel";
    let fits = |name: &&&str| ["text_encoder_2", "vqvae"].contains(name) == second;
    let name = takes.iter().find(fits).or(takes.first())?;
    record(model, sources, name);
    Some(Component { name: name.to_string(), class, config, weights: weights.called(name) })
}

/// Records files of another model as of the network `name`.
fn record(model: &mut Model, sources: Vec<SourceFile>, name: &str) {
    for mut source in sources {
        source.file = format!("{name}/{}", source.file.trim_start_matches("./"));
        model.sources.push(source);
    }
}
