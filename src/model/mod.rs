//! A packed file that is proven to be a model.
//!
//! META, the part of a file that people and pipelines read, comes from another section than the programs. [`Model::new`]
//! proves once that both agree, and turns META's numbers into `usize`; everything above takes the model and asks META
//! nothing. [`Model::verify`] proves the same after every byte.

mod proof;

use crate::error::{Error, Result};
use crate::exec::table_rows;
use crate::format::meta::{Conditioning, EncoderMeta, Meta, SizeBin, TextEncoderMeta, TextLength};
use crate::format::{Packed, TensorInfo};
use crate::program::shape::TensorType;
use crate::program::{InputKind, Program, Role};
use crate::sampler::Config;
use std::collections::BTreeMap;

/// Programs of the text encoders, in META's order.
pub const TEXT_ENCODERS: [Role; 2] = [Role::TextEncoder, Role::TextEncoder2];
/// Most frames of a video: beyond any use.
pub const MAX_FRAMES: usize = 1 << 12;
/// Most pixels on a side of an image.
pub const MAX_SIDE: usize = 1 << 14;
/// Channels that pictures may have: grey, RGB, RGBA.
pub const PICTURE_CHANNELS: [usize; 3] = [1, 3, 4];
/// Channels of what a decoder makes and an image encoder reads: RGB.
const DECODED_CHANNELS: usize = 3;

/// A packed file whose META agrees with its programs.
pub struct Model<'m, D> {
    packed: &'m Packed<D>,
    /// What the denoiser works on.
    pub latents: LatentSpace,
    /// Sizes in pixels that it was made for beside its own; each is one that it can make.
    pub size_bins: &'m [SizeBin],
    /// Classes that images may have; none for models without.
    pub classes: Option<Classes<'m>>,
    /// How prompts reach the denoisers; none for models that read none.
    pub text: Option<TextModel<'m>>,
    /// How the image encoder's result becomes latents; none without an image encoder.
    pub image_encoder: Option<EncoderMeta>,
    /// What the refiner reads; none without a refiner.
    pub refiner: Option<&'m Conditioning>,
    /// Whether there is a decoder. Without one the latents are the picture, in -1..1.
    pub decoder: bool,
    /// The sampler that the model was saved with.
    pub sampler: &'m Config,
    /// Sampler steps when none are asked for.
    pub steps: usize,
    /// Guidance scale when none is asked for.
    pub guidance_scale: f32,
    /// How many channels of the latents guidance leads, the first ones.
    pub guided_channels: usize,
}

/// The latents of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSpace {
    /// Channels.
    pub channels: usize,
    /// Height and width that the model was made for.
    pub size: [usize; 2],
    /// Frames that it was made for; 1 if it makes images.
    pub frames: usize,
    /// Whether it makes videos, of any number of frames.
    pub video: bool,
    /// Heights and widths are multiples of this.
    pub multiple: usize,
    /// Pixels of the image per latent, per axis.
    pub pixels: usize,
}

impl LatentSpace {
    /// Heights and widths of images are multiples of so many pixels.
    pub fn pixel_multiple(&self) -> usize {
        self.multiple * self.pixels
    }

    /// The axes n, c, f, h and w of tensors that people see, without that of frames where there are none but images.
    pub fn axes(&self, [n, c, f, h, w]: [usize; 5]) -> Vec<usize> {
        if self.video { vec![n, c, f, h, w] } else { vec![n, c, h, w] }
    }

    /// Floats of a frame's latents of this height and width.
    pub fn len(&self, [height, width]: [usize; 2]) -> usize {
        height * width * self.channels
    }
}

/// The classes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Classes<'m> {
    /// Labels are `0..count`.
    pub count: usize,
    /// The label that means no class; what guidance leads away from.
    pub null: u32,
    /// Names, by label.
    pub names: &'m BTreeMap<u32, String>,
}

impl Classes<'_> {
    /// Whether `label` is a class, or the label of none.
    pub fn contains(&self, label: u32) -> bool {
        (label as usize) < self.count || label == self.null
    }

    /// The label of a class by its name, in any case, or by its number. A name with commas is a list of synonyms, as those
    /// of ImageNet are, and each of them stands for the class, as all of them do. Where several classes have a name, the
    /// last has it, as in diffusers' DiTPipeline, whose files sort numbers as texts.
    ///
    /// # Errors
    /// [`Error::Request`] that tells what labels there are.
    pub fn label(&self, text: &str) -> Result<u32> {
        let asked: Vec<&str> = synonyms(text).collect();
        if let Some(label) = self.named(&asked) {
            return Ok(label);
        }
        match text.trim().parse() {
            Ok(label) if self.contains(label) => Ok(label),
            _ => Err(Error::class(self.expected(), format!("`{}`", text.trim()))),
        }
    }

    /// The labels of a list of names and numbers with commas between them. Names may hold commas themselves: the longest
    /// that the list goes on with counts.
    ///
    /// # Errors
    /// As for [`label`](Self::label), for the first entry that is none.
    pub fn labels(&self, list: &str) -> Result<Vec<u32>> {
        let parts: Vec<&str> = synonyms(list).collect();
        let longest = self.names.values().map(|name| synonyms(name).count()).max().unwrap_or(1);
        let mut labels = Vec::new();
        let mut at = 0;
        while at < parts.len() {
            let most = longest.min(parts.len() - at);
            let found = (2..=most).rev().find_map(|n| Some((n, self.named(&parts[at..at + n])?)));
            let (taken, label) = found.map_or_else(|| Ok((1, self.label(parts[at])?)), Ok)?;
            labels.push(label);
            at += taken;
        }
        Ok(labels)
    }

    /// The label of the class that is called by all of `asked` or, if that is one, has it among its synonyms: spelled so
    /// or, where none is, in any case.
    fn named(&self, asked: &[&str]) -> Option<u32> {
        let last = |same: &dyn Fn(&str, &str) -> bool| {
            let whole = |name: &str| {
                synonyms(name).count() == asked.len() && synonyms(name).zip(asked).all(|(a, b)| same(a, b))
            };
            let one = |name: &str| matches!(asked, [asked] if synonyms(name).any(|synonym| same(synonym, asked)));
            let having = self.names.iter().filter(|(_, name)| whole(name) || one(name));
            having.map(|(&label, _)| label).max_by_key(u32::to_string)
        };
        last(&|a, b| a == b).or_else(|| last(&|a, b| a.eq_ignore_ascii_case(b)))
    }

    /// The labels there are, for messages.
    pub(crate) fn expected(&self) -> String {
        let names: Vec<_> = self.names.values().filter_map(|name| synonyms(name).next()).take(6).collect();
        let or = if names.is_empty() { String::new() } else { format!(", or a name such as {}", names.join(", ")) };
        format!("0 to {}{or}", self.count - 1)
    }

    /// The name of a class, for people.
    pub fn name(&self, label: u32) -> String {
        self.names.get(&label).cloned().unwrap_or_else(|| format!("class {label}"))
    }
}

/// The synonyms that the name of a class is made of.
fn synonyms(name: &str) -> impl Iterator<Item = &str> {
    name.split(',').map(str::trim)
}

/// How prompts reach the denoisers.
#[derive(Clone, Debug)]
pub struct TextModel<'m> {
    /// The text encoders.
    pub encoders: Vec<TextEncoder<'m>>,
    /// Whether an empty negative prompt is zeros instead of the features of an empty text.
    pub zero_negative: bool,
    /// The learned features that stand for no negative prompt, little-endian f32 `(tokens, features)`, at least as many tokens
    /// as a prompt may have; none where an empty text stands for it.
    pub null_caption: Option<&'m [u8]>,
    /// Whether negative prompts have as many tokens as their prompts; see
    /// [`TextMeta::negative_as_long`](crate::format::meta::TextMeta::negative_as_long).
    pub negative_as_long: bool,
    /// What the denoiser reads of them.
    pub denoiser: &'m Conditioning,
    /// Whether denoisers are told how many tokens of each prompt count, so that prompts of one call may differ in length.
    pub lengths: bool,
}

impl TextModel<'_> {
    /// The text encoders, if the file has them.
    ///
    /// # Errors
    /// [`Error::Request`] that tells how to do without.
    pub fn encoders(&self) -> Result<&[TextEncoder<'_>]> {
        match self.encoders.iter().all(|encoder| encoder.encodes) {
            true => Ok(&self.encoders),
            false => {
                let expected = "--inputs FILE, which `aquatint encode WHOLE.aqt -p PROMPT -o FILE` makes with a file of the same model that has its text encoder";
                Err(Error::request("prompt", expected, "a file packed without it"))
            }
        }
    }

    /// What stands for no negative prompt beside a prompt of so many tokens, `(tokens, features)`, if it is learned.
    pub fn null_features(&self, tokens: usize) -> Option<Vec<f32>> {
        let features = self.encoders.first().map_or(0, |encoder| encoder.features);
        self.null_caption.map(|caption| f32s(caption).take(tokens * features).collect())
    }

    /// Tokens of a prompt for memory plans: as many as there can be in one chunk.
    pub fn tokens(&self) -> usize {
        let first = self.denoiser.context.first().and_then(|&i| self.encoders.get(i as usize));
        first.map_or(1, |encoder| encoder.tokens)
    }
}

/// A text encoder: tokens `(n, tokens)` to `(n, tokens, features + pooled)`.
#[derive(Clone, Copy, Debug)]
pub struct TextEncoder<'m> {
    /// Its program.
    pub role: Role,
    /// Whether the file has that program.
    pub encodes: bool,
    /// Tokens of a text with its beginning, end and padding; the most, where texts have a length of their own.
    pub tokens: usize,
    /// How long its texts are.
    pub length: TextLength,
    /// Columns of the result that are features of the token.
    pub features: usize,
    /// Columns after them: the vector of the whole text, to be taken at the first end token; 0 if there is none.
    pub pooled: usize,
    /// The contents of its `tokenizer.json`; none if the file brings none along.
    pub tokenizer: Option<&'m [u8]>,
    /// The tokens that begin, end and pad a text.
    pub special: &'m TextEncoderMeta,
}

impl<'m, D: AsRef<[u8]>> Model<'m, D> {
    /// Proves that `packed` is a model: that it has the programs it needs, and that all numbers and names of META agree
    /// with them.
    ///
    /// # Errors
    /// [`Error::Format`] of section META that names the first field that does not; [`Error::Request`] if a program is
    /// missing; [`Error::Shape`] if a program cannot take the model's own size.
    pub fn new(packed: &'m Packed<D>) -> Result<Self> {
        proof::model(packed)
    }

    /// Checks every byte of `packed`, and that it is a model.
    ///
    /// # Errors
    /// Those of [`Packed::verify`] and [`new`](Self::new).
    pub fn verify(packed: &'m Packed<D>) -> Result<Self> {
        packed.verify()?;
        Self::prove(packed)
    }

    /// Proves that `packed`, whose bytes are known to be sound, is a model: what the packer does before a file appears.
    ///
    /// # Errors
    /// Those of [`verify`](Self::verify), but for bytes.
    pub fn prove(packed: &'m Packed<D>) -> Result<Self> {
        let model = Self::new(packed)?;
        model.check_all()?;
        Ok(model)
    }

    /// What opening a model takes on trust, since no image depends on it or it takes long to look at.
    fn check_all(&self) -> Result<()> {
        proof::report(self.packed)?;
        proof::tokenizers(self)
    }

    /// The file.
    pub fn packed(&self) -> &'m Packed<D> {
        self.packed
    }

    /// What the file says of itself to people: names, provenance, the report of its quantization.
    pub fn meta(&self) -> &'m Meta {
        self.packed.meta()
    }

    /// The size, height and width in pixels, that it was made for and whose ratio is nearest to that of `size`; none if it has no
    /// list of sizes.
    pub fn nearest_bin(&self, size: [usize; 2]) -> Option<[usize; 2]> {
        nearest_bin(self.size_bins, size)
    }

    /// What the denoiser of `role` reads of prompts; none if the model reads none.
    pub fn conditioning(&self, role: Role) -> Option<&'m Conditioning> {
        match role {
            Role::Refiner => self.refiner,
            _ => self.text.as_ref().map(|text| text.denoiser),
        }
    }

    /// Channels of the pictures that it makes and begins with, one of [`PICTURE_CHANNELS`].
    pub fn picture_channels(&self) -> usize {
        if self.decoder { DECODED_CHANNELS } else { self.latents.channels }
    }

    /// Whether images are made of anything but noise, so that there is guidance.
    pub fn conditional(&self) -> bool {
        self.classes.is_some() || self.text.is_some()
    }
}

/// Height and width of the first of `bins` whose ratio is nearest to that of `size`.
pub fn nearest_bin(bins: &[SizeBin], [height, width]: [usize; 2]) -> Option<[usize; 2]> {
    let ratio = height as f64 / width as f64;
    let apart = |bin: &SizeBin| (bin.ratio - ratio).abs();
    let nearest = bins.iter().min_by(|a, b| apart(a).total_cmp(&apart(b)))?;
    Some(nearest.size.map(|side| side as usize))
}

/// Little-endian numbers.
fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// What the rules need to know of the tensors of `packed`.
fn tensor_types<D: AsRef<[u8]>>(packed: &Packed<D>) -> Vec<TensorType> {
    packed.tensors().iter().map(TensorInfo::ty).collect()
}

/// Rows of the smallest table that the input of `kind` indexes; without one, any number will do.
fn rows_of<D: AsRef<[u8]>>(packed: &Packed<D>, program: &Program, kind: InputKind) -> usize {
    let rows = table_rows(program, |t| packed.tensors()[t.0 as usize].dims[0]);
    program.input(kind).map_or(usize::MAX, |value| rows[value.0 as usize])
}
