//! A model directory as `DiffusionPipeline.save_pretrained` writes it: `model_index.json` and a folder per component.

use super::{Checkpoint, SourceFile, read_json};
use aquatint::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A JSON object.
pub type Object = Map<String, Value>;

/// Pipelines that can be packed, and the folders of their networks.
pub const PIPELINES: [(&str, &[&str]); 3] =
    [("DiTPipeline", &["transformer", "vae"]), ("DDPMPipeline", &["unet"]), ("DDIMPipeline", &["unet"])];

/// A network of the pipeline: its configuration and weights.
#[derive(Debug)]
pub struct Component {
    /// Folder name: `transformer`, `vae`...
    pub name: String,
    /// Class in diffusers.
    pub class: String,
    /// Contents of `config.json`.
    pub config: Object,
    /// Weights.
    pub weights: Checkpoint,
}

/// An opened model directory. Configurations are read; weights are mapped.
#[derive(Debug)]
pub struct Model {
    /// Name of the directory.
    pub name: String,
    /// Class of the pipeline.
    pub class: String,
    /// Contents of `model_index.json`.
    pub index: Object,
    /// Contents of `scheduler/scheduler_config.json`.
    pub scheduler: Value,
    /// Networks, in the order they were asked for.
    pub components: Vec<Component>,
    /// Every file read so far, in order.
    pub sources: Vec<SourceFile>,
}

impl Model {
    /// Opens the model directory at `root`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not a diffusers directory, its pipeline is not one of [`PIPELINES`], or a component
    /// is missing or malformed; [`Error::Io`] if a file cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        let index_file = "model_index.json";
        if !root.join(index_file).is_file() {
            let got = if root.is_dir() { "a directory without one" } else { "no such directory" };
            let expected = "a diffusers model directory, with model_index.json";
            return Err(Error::request(format!("model {}", root.display()), expected, got));
        }
        let mut sources = Vec::new();
        let index: Object = read_json(root, index_file, &mut sources)?;
        let class = text(&index, "_class_name").unwrap_or_default().to_owned();
        let Some((_, folders)) = PIPELINES.iter().find(|(name, _)| *name == class) else {
            let expected = format!("a supported pipeline: {}", PIPELINES.map(|p| p.0).join(", "));
            return Err(Error::request(format!("{index_file}: _class_name"), expected, format!("{class:?}")));
        };
        let mut model =
            Model { name: directory_name(root), class, index, scheduler: Value::Null, components: Vec::new(), sources };
        let scheduler = "scheduler/scheduler_config.json";
        model.scheduler = Value::Object(read_json(root, scheduler, &mut model.sources)?);
        for name in *folders {
            let component = model.open_component(root, name)?;
            model.components.push(component);
        }
        Ok(model)
    }

    fn open_component(&mut self, root: &Path, name: &str) -> Result<Component> {
        if !root.join(name).is_dir() {
            let expected = format!("a folder {name}, as a {} has", self.class);
            return Err(Error::request(format!("model {}", root.display()), expected, "none"));
        }
        let config: Object = read_json(root, &format!("{name}/config.json"), &mut self.sources)?;
        // The component's own word counts; old directories only have the index.
        let listed = self.index.get(name).and_then(|v| v.get(1)).and_then(Value::as_str);
        let class = text(&config, "_class_name").or(listed).unwrap_or_default().to_owned();
        let weights = Checkpoint::open(root, name, &mut self.sources)?;
        Ok(Component { name: name.to_owned(), class, config, weights })
    }

    /// The component in folder `name`.
    ///
    /// # Panics
    /// If the pipeline's class has no such component: a bug, since [`open`](Self::open) opened all of them.
    pub fn component(&self, name: &str) -> &Component {
        let found = self.components.iter().find(|c| c.name == name);
        found.unwrap_or_else(|| panic!("component {name} of {}", self.class))
    }

    /// Names of classes by number, from `id2label` of the index; empty if there are none.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not a map from numbers to names.
    pub fn class_names(&self) -> Result<std::collections::BTreeMap<u32, String>> {
        let Some(labels) = self.index.get("id2label").filter(|v| !v.is_null()) else { return Ok(Default::default()) };
        serde_json::from_value(labels.clone())
            .map_err(|e| Error::request("model_index.json: id2label", "names by class number", e))
    }
}

fn text<'a>(object: &'a Object, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

/// The last part of the path, also of `.` and `..`.
fn directory_name(root: &Path) -> String {
    let whole = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
