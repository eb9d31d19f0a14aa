//! A model directory as `DiffusionPipeline.save_pretrained` writes it: `model_index.json` and a folder per component.
//! A model in one file becomes the same.

use super::donors::{self, Donors};
use super::settings::{Overrules, Settings};
use super::tokenizer::{self, TokenizerFile};
use super::{Checkpoint, SourceFile, layout, read_json};
use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::OWN_SCHEDULER;
use aquatint::raw::text::Family;
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// A JSON object.
pub type Object = Map<String, Value>;

/// Name of a second denoiser; see [`Model::with_refiner`].
pub const REFINER: &str = "refiner";

/// A pipeline that can be packed, and the folders of its networks.
#[derive(Clone, Copy, Debug)]
pub struct Pipeline {
    /// Its class, as `model_index.json` names it.
    pub class: &'static str,
    /// One folder of each list must be there.
    pub needs: &'static [&'static [&'static str]],
    /// Folders that may be there.
    pub takes: &'static [&'static str],
    /// Folders of tokenizers that may be there.
    pub tokenizers: &'static [&'static str],
}

/// Pipelines that can be packed. Whatever else their directories hold (a `safety_checker`, a `feature_extractor`) is not
/// looked at.
pub const PIPELINES: [Pipeline; 17] = [
    plain("DiTPipeline", &[&["transformer"], &["vae"]]),
    plain("LatteClassPipeline", &[&["transformer"], &["vae"]]),
    plain("DDPMPipeline", &[&["unet"]]),
    plain("DDIMPipeline", &[&["unet"]]),
    plain("LDMPipeline", &[&["unet"], &["vqvae", "vae"]]),
    plain("LDMClassToImagePipeline", &[&["unet"], &["class_embedding"], &["vqvae", "vae"]]),
    hunyuan("HunyuanDiTPipeline"),
    captioned("PixArtAlphaPipeline"),
    captioned("PixArtSigmaPipeline"),
    captioned("LattePipeline"),
    captioned("OpenSoraPipeline"),
    stable_diffusion("StableDiffusionPipeline"),
    stable_diffusion("StableDiffusionImg2ImgPipeline"),
    stable_diffusion("StableDiffusionInpaintPipeline"),
    stable_diffusion_xl("StableDiffusionXLPipeline"),
    stable_diffusion_xl("StableDiffusionXLImg2ImgPipeline"),
    stable_diffusion_xl("StableDiffusionXLInpaintPipeline"),
];

const fn plain(class: &'static str, needs: &'static [&'static [&'static str]]) -> Pipeline {
    Pipeline { class, needs, takes: &[], tokenizers: &[] }
}

const fn hunyuan(class: &'static str) -> Pipeline {
    let takes = &["text_encoder", "text_encoder_2"];
    Pipeline { class, needs: &[&["transformer"], &["vae"]], takes, tokenizers: &["tokenizer", "tokenizer_2"] }
}

const fn captioned(class: &'static str) -> Pipeline {
    Pipeline { class, needs: &[&["transformer"], &["text_encoder"], &["vae"]], takes: &[], tokenizers: &["tokenizer"] }
}

const fn stable_diffusion(class: &'static str) -> Pipeline {
    Pipeline { class, needs: &[&["unet"], &["text_encoder"], &["vae"]], takes: &[], tokenizers: &["tokenizer"] }
}

const fn stable_diffusion_xl(class: &'static str) -> Pipeline {
    let needs: &[&[&str]] = &[&["unet"], &["text_encoder_2"], &["vae"]];
    Pipeline { class, needs, takes: &["text_encoder"], tokenizers: &["tokenizer", "tokenizer_2"] }
}

/// A network of the pipeline: its configuration and weights.
#[derive(Debug)]
pub struct Component {
    /// Folder name: `transformer`, `vae`...
    pub name: String,
    /// Class in diffusers.
    pub class: String,
    /// Contents of `config.json`.
    pub config: Object,
    /// The directory of its tensors.
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
    /// Contents of `scheduler/scheduler_config.json`, or what takes their place.
    pub scheduler: Value,
    /// Who decided about them, by field; `scheduler` stands for the rest.
    pub decided_by: BTreeMap<String, String>,
    /// Networks, in the order they were asked for.
    pub components: Vec<Component>,
    /// Tokenizers by folder.
    pub tokenizers: Vec<(String, TokenizerFile)>,
    /// Every file read so far, in order.
    pub sources: Vec<SourceFile>,
    /// Whether text encoders are left out: of these only configurations count, and prompts will be given as features.
    pub without_text: bool,
}

impl Model {
    /// Opens the model directory at `root`, or the single file; see [`layout::open`] for those.
    ///
    /// # Errors
    /// [`Error::Request`] if it is neither a diffusers directory nor a known file, its pipeline is not one of [`PIPELINES`], or a component
    /// is missing or malformed; [`Error::Io`] if a file cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        Model::open_with(root, &Donors::default(), &Overrules::default())
    }

    /// The same, with the networks that `donors` give instead of its own, which it need not have, and but for what a person
    /// overrules.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Request`] if a donor does not have what the pipeline takes, or a file that overrules
    /// cannot be read.
    pub fn open_with(root: &Path, donors: &Donors, overrules: &Overrules) -> Result<Self> {
        let mut model = match root.is_file() {
            true => layout::open(root, donors.elsewhere(), overrules)?,
            false => Model::open_directory(root, donors, overrules)?,
        };
        model.without_text = donors.without_text;
        donors::donate(&mut model, donors)?;
        if root.is_file() && donors.autoencoder.is_some() {
            donors::fit_latents(&mut model);
        }
        for folders in model.pipeline().map_or(&[][..], |p| p.needs) {
            if !folders.iter().any(|name| model.find(name).is_some()) {
                let option = donors::option(folders[0]).unwrap_or("model");
                return Err(Error::request(option, format!("a {}, as a {} has", folders[0], model.class), "none"));
            }
        }
        Ok(model)
    }

    fn open_directory(root: &Path, donors: &Donors, overrules: &Overrules) -> Result<Self> {
        let index_file = "model_index.json";
        if !root.join(index_file).is_file() {
            let got = if root.is_dir() { "a directory without one" } else { "no such file or directory" };
            let expected = "a diffusers model directory, with model_index.json, or a checkpoint file";
            return Err(Error::request(format!("model {}", root.display()), expected, got));
        }
        let mut sources = Vec::new();
        let index: Object = read_json(root, index_file, &mut sources)?;
        let class = text(&index, "_class_name").unwrap_or_default().to_owned();
        let Some(pipeline) = PIPELINES.iter().find(|p| p.class == class) else {
            let expected = format!("a supported pipeline: {}", PIPELINES.map(|p| p.class).join(", "));
            return Err(Error::request(format!("{index_file}: _class_name"), expected, format!("{class:?}")));
        };
        let mut model = Model {
            name: directory_name(root),
            class,
            index,
            scheduler: Value::Null,
            decided_by: BTreeMap::new(),
            components: Vec::new(),
            tokenizers: Vec::new(),
            sources,
            without_text: donors.without_text,
        };
        let own = match &overrules.scheduler_config {
            Some(_) => Object::new(),
            None => read_json(root, OWN_SCHEDULER, &mut model.sources)?,
        };
        let settings = Settings::new(own, OWN_SCHEDULER, Vec::new(), overrules, &mut model.sources)?;
        (model.scheduler, model.decided_by) = (Value::Object(settings.scheduler), settings.decided_by);
        let is_there = |name: &&&str| root.join(name).is_dir();
        for folders in pipeline.needs.iter().filter(|folders| !donors.have(folders[0])) {
            let name = folders.iter().find(is_there).unwrap_or(&folders[0]);
            if !root.join(name).is_dir() {
                let other =
                    donors::option(name).map_or(String::new(), |o| format!(", or another model's by {o} MODEL"));
                let expected = format!("a folder {name}, as a {} has{other}", model.class);
                return Err(Error::request(format!("model {}", root.display()), expected, "none"));
            }
            let left_out = donors.without_text && donors::is_text_encoder(name);
            let open = if left_out { open_configuration } else { open_component };
            let component = open(root, name, &model.index, &mut model.sources)?;
            model.components.push(component);
        }
        for name in pipeline.takes.iter().filter(is_there).filter(|name| !donors.have(name)) {
            let left_out = donors.without_text && donors::is_text_encoder(name);
            let open = if left_out { open_configuration } else { open_component };
            let component = open(root, name, &model.index, &mut model.sources)?;
            model.components.push(component);
        }
        for name in pipeline.tokenizers.iter().filter(is_there) {
            let tokenizer = tokenizer::read(root, name, &mut model.sources)?;
            model.tokenizers.push((name.to_string(), tokenizer));
        }
        Ok(model)
    }

    fn pipeline(&self) -> Option<&'static Pipeline> {
        PIPELINES.iter().find(|p| p.class == self.class)
    }

    /// Whether its pipeline has a network in folder `name`, or may have.
    pub(super) fn takes(&self, name: &str) -> bool {
        let of = |p: &Pipeline| p.needs.iter().copied().flatten().chain(p.takes).any(|folder| *folder == name);
        self.pipeline().is_some_and(of)
    }

    /// The component in folder `name`.
    ///
    /// # Panics
    /// If the pipeline's class has no such component: a bug, since [`open`](Self::open) opened all of them.
    pub fn component(&self, name: &str) -> &Component {
        self.find(name).unwrap_or_else(|| panic!("component {name} of {}", self.class))
    }

    /// The component in folder `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }

    /// This model, with the denoiser of `refiner` as a further component called [`REFINER`]: the last steps of one
    /// sampling run are the refiner's. It must read the same latents and the same text encoder as this one.
    ///
    /// # Errors
    /// [`Error::Request`] if this model or the other has no such role, or their encoders or autoencoders differ.
    pub fn with_refiner(mut self, refiner: Model) -> Result<Self> {
        let refines = |class: &str| class == "StableDiffusionXLImg2ImgPipeline";
        for (what, model, fits) in [
            ("model with a refiner", &self, self.class.starts_with("StableDiffusionXL")),
            ("refiner", &refiner, refines(&refiner.class)),
        ] {
            if !fits {
                return Err(Error::request(what, "a pipeline of Stable Diffusion XL", &model.class));
            }
        }
        let [own, other] = [&self, &refiner].map(|model| Settings::prediction(&model.scheduler));
        if own != other {
            return Err(Error::request("refiner: prediction_type", format!("{own}, the model's own"), other));
        }
        for (name, key) in [("vae", "decoder.conv_out.bias"), ("text_encoder_2", "text_model.final_layer_norm.bias")] {
            let (own, other) = (&self.component(name).weights, &refiner.component(name).weights);
            // One tensor of each tells trained weights apart.
            if own.has(key) && other.has(key) && !alike(own, other, key)? {
                return Err(Error::request(format!("refiner: {name}"), format!("the model's own {name}"), "another"));
            }
        }
        let scaling = |m: &Model| m.component("vae").config.get("scaling_factor").cloned();
        if scaling(&self) != scaling(&refiner) {
            let shown = |m: &Model| scaling(m).unwrap_or(Value::Null);
            return Err(Error::request("refiner: vae scaling_factor", shown(&self), shown(&refiner)));
        }
        let unet = refiner.components.into_iter().find(|c| c.name == "unet");
        self.components.extend(unet.map(|component| Component { name: REFINER.to_owned(), ..component }));
        // Or the one file that holds everything.
        let of_unet = |s: &SourceFile| s.file.starts_with("unet/") || s.weights && !s.file.contains('/');
        for mut source in refiner.sources.into_iter().filter(of_unet) {
            source.file = format!("{REFINER}/{}", source.file);
            self.sources.push(source);
        }
        Ok(self)
    }

    /// The tokenizer in folder `name`, which must be of `family`. Without one it is CLIP's own, if that is asked for: there is
    /// none beside checkpoints in their authors' layouts.
    ///
    /// # Errors
    /// [`Error::Request`] if it is of another family, or there is none of a family that has many.
    pub fn tokenizer(&self, name: &str, family: Family) -> Result<Cow<'_, TokenizerFile>> {
        let expected = || format!("a tokenizer of {} kind", family.name());
        match self.tokenizers.iter().find(|(folder, _)| folder == name) {
            Some((_, file)) if file.family == family => Ok(Cow::Borrowed(file)),
            Some((_, file)) => Err(Error::request(name, expected(), file.family.name())),
            // The second of Stable Diffusion XL fills texts up in its own way.
            None if family == Family::Clip && name == "tokenizer_2" => {
                Ok(Cow::Owned(tokenizer::clip(tokenizer::PAD_XL)))
            }
            None if family == Family::Clip => Ok(Cow::Owned(tokenizer::clip(tokenizer::END))),
            None => {
                let expected = format!("{}, in a folder {name} or that of --text-encoder MODEL", expected());
                Err(Error::request("model", expected, "none"))
            }
        }
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

/// Whether tensor `key` is the same in both, but for what the narrower of their types rounds.
fn alike(a: &Checkpoint, b: &Checkpoint, key: &str) -> Result<bool> {
    let is = |dtype| [a, b].iter().any(|c| c.dtype(key) == Some(dtype));
    let rounded = |v: f32| match () {
        () if is(Dtype::BF16) => bf16::from_f32(v).to_f32(),
        () if is(Dtype::F16) => f16::from_f32(v).to_f32(),
        () => v,
    };
    let read = |c: &Checkpoint| Ok(c.read(key)?.into_iter().map(rounded).collect::<Vec<_>>());
    Ok(read(a)? == read(b)?)
}

/// Opens the network in `root/name`; `index` is what the pipeline's `model_index.json` holds.
///
/// # Errors
/// If its configuration or its weights cannot be read.
pub(super) fn open_component(
    root: &Path,
    name: &str,
    index: &Object,
    sources: &mut Vec<SourceFile>,
) -> Result<Component> {
    let component = open_configuration(root, name, index, sources)?;
    let weights = Checkpoint::open(root, name, sources)?;
    Ok(Component { weights, ..component })
}

/// The same without weights.
fn open_configuration(root: &Path, name: &str, index: &Object, sources: &mut Vec<SourceFile>) -> Result<Component> {
    let config: Object = read_json(root, &format!("{name}/config.json"), sources)?;
    // The component's own word counts; old directories only have the index.
    let listed = index.get(name).and_then(|v| v.get(1)).and_then(Value::as_str);
    let class = text(&config, "_class_name").or(listed).unwrap_or_default().to_owned();
    Ok(Component { name: name.to_owned(), class, config, weights: Checkpoint::empty(name.to_owned()) })
}

pub(super) fn text<'a>(object: &'a Object, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

/// The last part of the path, also of `.` and `..`.
fn directory_name(root: &Path) -> String {
    let whole = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
