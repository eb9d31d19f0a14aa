//! Models published as one file in their authors' own layout, read as if diffusers had saved them.
//!
//! ```text
//! names and shapes of the file  ->  structure ([`Unet`], [`Autoencoder`], [`TextEncoder`])
//! structure                     ->  tensors under canonical names ([`List`]), config.json
//! canonical name                ->  name in the file, and which part of that tensor ([`Entry`])
//! ```
//!
//! Canonical names and shapes are those of a diffusers directory; nothing after this module knows another layout. What
//! shapes cannot tell (heads, sizes of images, samplers) is what the published models of that structure have, and is said
//! where it is decided. Weights are not read here, but for single numbers and the table of betas.

mod autoencoder;
mod compvis;
mod dit;
mod donor;
mod elsewhere;
mod hunyuan;
mod ignored;
pub mod known;
mod latte;
mod list;
mod openclip;
mod pipeline;
mod pixart;
mod scheduler;
mod stdit;
mod taming;
mod text;
mod unet;

pub use autoencoder::Autoencoder;
pub use dit::Dit;
pub use donor::{autoencoder, text_encoders};
pub use elsewhere::Elsewhere;
pub use hunyuan::Hunyuan;
pub use latte::Latte;
pub use list::List;
pub use pipeline::{GUIDED_CHANNELS, LEARNED_NULL, Member, Published, STEPS, recognise, recognise_without};
pub use pixart::{NULL_CAPTION, Pixart, authors_paths};
pub use stdit::Stdit;
pub use text::TextEncoder;
pub use unet::{Added, Attention, Conventions, Heads, Unet};

use super::diffusers::{Component, Model, Object};
use super::settings::{self, Overrules, Settings};
use super::view::Part;
use super::{Checkpoint, SourceFile};
use aquatint::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// A tensor under its canonical name, and where a published file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name that diffusers or transformers gives it.
    pub key: String,
    /// The axes that it has there.
    pub dims: Vec<usize>,
    /// Name in the file.
    pub source: String,
    /// Axes in the file, of the whole tensor. Axes of one element at the end do not count.
    pub source_dims: Vec<usize>,
    /// Which of its elements.
    pub part: Part,
}

/// Names and shapes of a file's tensors, and the few values that decide what a model is.
pub trait Tensors {
    /// What messages call the file.
    fn name(&self) -> &str;
    /// Names of all tensors.
    fn keys(&self) -> Vec<&str>;
    /// Axes of a tensor, if it exists.
    fn shape(&self, key: &str) -> Option<&[usize]>;
    /// What is there instead of a tensor called so, if anything is.
    fn instead(&self, _key: &str) -> Option<&str> {
        None
    }
    /// All elements of a tensor.
    ///
    /// # Errors
    /// [`Error::Request`] if it does not exist or holds no numbers.
    fn values(&self, key: &str) -> Result<Vec<f32>>;
}

impl Tensors for Checkpoint {
    fn name(&self) -> &str {
        self.component()
    }

    fn keys(&self) -> Vec<&str> {
        Checkpoint::keys(self).collect()
    }

    fn shape(&self, key: &str) -> Option<&[usize]> {
        Checkpoint::shape(self, key)
    }

    fn instead(&self, key: &str) -> Option<&str> {
        self.object(key)
    }

    fn values(&self, key: &str) -> Result<Vec<f32>> {
        self.read(key)
    }
}

/// The tensors of one network: those whose names begin with a prefix.
#[derive(Clone, Copy)]
struct Network<'a> {
    tensors: &'a dyn Tensors,
    prefix: &'a str,
    /// What it is in a diffusers directory.
    component: &'a str,
}

impl Network<'_> {
    fn shape(&self, key: &str) -> Option<&[usize]> {
        self.tensors.shape(&format!("{}{key}", self.prefix))
    }

    fn has(&self, key: &str) -> bool {
        self.shape(key).is_some()
    }

    /// Axis `axis` of the tensor called `key`.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such tensor or axis.
    fn dim(&self, key: &str, axis: usize) -> Result<usize> {
        let shape = self.shape(key);
        let found = shape.and_then(|s| s.get(axis)).copied().filter(|&n| n > 0);
        found.ok_or_else(|| match shape {
            Some(shape) => {
                self.error(key, format!("a tensor of at least {} axes", axis + 1), format!("shape {shape:?}"))
            }
            None => {
                let instead = self.tensors.instead(&format!("{}{key}", self.prefix)).unwrap_or("no such tensor");
                self.error(key, "this tensor", instead)
            }
        })
    }

    /// How many numbers from 0 on `key` makes names of tensors of.
    fn count(&self, key: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.has(&key(i))).count()
    }

    fn error(&self, key: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        let what = format!("{}: {}{key} ({})", self.tensors.name(), self.prefix, self.component);
        Error::request(what, expected, got)
    }
}

/// Opens a single file; of those that have a `state_dict`, that.
///
/// # Errors
/// As [`Checkpoint::open_file`].
pub fn open_file(path: &Path, sources: &mut Vec<SourceFile>) -> Result<Checkpoint> {
    let mut file = Checkpoint::open_file(path, sources)?;
    // Lightning's checkpoints have everything else beside it: the optimizer's state, callbacks, counters.
    if file.keys().any(|key| key.starts_with("state_dict.")) {
        file = file.below("state_dict")?;
    } else if file.keys().any(|key| key == "ema.x_embedder.proj.weight") {
        // Training of DiT and its kin: the weights, their averages, which samplers use, and the optimizer's state.
        file = file.below("ema")?;
    }
    Ok(file)
}

/// Opens the model in the single file at `path`, without the networks that are `elsewhere`.
///
/// # Errors
/// [`Error::Request`] if the file is not a checkpoint, or not of a model that is known; what it lacks or has too much;
/// [`Error::Io`] if it cannot be read.
pub fn open(path: &Path, elsewhere: Elsewhere, overrules: &Overrules) -> Result<Model> {
    let mut sources: Vec<SourceFile> = Vec::new();
    let mut file = open_file(path, &mut sources)?;
    let begins = |prefix: &str| file.keys().any(|key| key.starts_with(prefix));
    if begins("input_blocks.0.0.") && !begins(pipeline::DENOISER) {
        // The denoiser alone.
        file = file.under(pipeline::DENOISER);
    }
    let mut published = recognise_without(&file, elsewhere)?;
    let companion = settings::of_companion(path, overrules, &mut sources)?;
    if let Some((factor, by)) = companion.scale_factor {
        published.scale_latents(&file, factor, by)?;
    }
    let mut statements = settings::of_metadata(path, overrules)?;
    statements.extend(settings::of_marks(file.keys()));
    statements.extend(companion.statements);
    let member = |member: &Member| {
        let weights = file.renamed(member.name, &member.entries)?;
        let (name, class) = (member.name.to_owned(), member.class.to_owned());
        Ok(Component { name, class, config: member.config.clone(), weights })
    };
    let components = published.members.iter().map(member).collect::<Result<Vec<_>>>()?;
    let name = path.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    let Published { label, class, index, scheduler, .. } = published;
    let by = format!("default of {label}");
    let Settings { scheduler, decided_by } = Settings::new(scheduler, &by, statements, overrules, &mut sources)?;
    let (class, scheduler) = (class.to_owned(), Value::Object(scheduler));
    // No tokenizer lies beside the weights; who needs one knows CLIP's.
    Ok(Model {
        name,
        class,
        index,
        scheduler,
        decided_by,
        components,
        tokenizers: Vec::new(),
        sources,
        without_text: false,
    })
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => unreachable!("an object, not {other}"),
    }
}
