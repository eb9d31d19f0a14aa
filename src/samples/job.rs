//! What to make: images of a job by their numbers.

use super::file::{FORMAT, Header, Shapes, text_of};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::infotext::Infotext;
use crate::model::Model;
use crate::options::{Made, RequestOptions, Tensors, infotext};
use crate::pipeline::{NoiseSource, Prompts, Request, Session};
use crate::shard::Shard;
use std::collections::BTreeMap;
use std::ops::Range;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Images per pass through the network, unless the caller says otherwise.
const BATCH: usize = 8;
/// Most images of a job: their seeds are numbers from the first one's on.
const MOST: usize = 1 << 40;
/// Settings of a picture's text that no picture depends on, or that a job says in other words.
const NOT_OF_THE_JOB: [&str; 5] = ["Model", "Refiner", "Device", "Seed", "Model hash"];

/// What is kept of each image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    /// The picture.
    #[default]
    Images,
    /// The final latents; nothing is decoded.
    Latents,
    /// Both.
    Both,
}

impl Kept {
    /// Whether latents are among it.
    pub fn latents(self) -> bool {
        self != Kept::Images
    }

    /// Whether pictures are among it.
    pub fn images(self) -> bool {
        self != Kept::Latents
    }
}

/// Options of a job.
#[derive(Clone, Debug, Default)]
pub struct SampleOptions {
    /// What is asked of images. Prompts and classes are those that images show in turn: image `i` shows that of number `i`
    /// modulo how many there are. Noise of torch's generator comes from one generator per image.
    pub request: RequestOptions,
    /// Images; one per prompt or class if absent.
    pub images: Option<usize>,
    /// What is kept of them.
    pub kept: Kept,
}

/// Images to make, of which a [`Shard`] is a part.
#[derive(Clone, Debug)]
pub struct SampleJob {
    /// One image of each prompt or class.
    request: Request,
    images: usize,
    batch: usize,
    kept: Kept,
    /// The model's name, for texts of pictures.
    name: String,
    resize: crate::image::ResizeMode,
    tile: [usize; 2],
    /// The hash of the tensors in place of prompts.
    inputs: Option<String>,
    shapes: Shapes,
    /// Everything that images depend on, but for what computes them, by the names that texts of pictures have for it.
    pub(super) settings: BTreeMap<String, String>,
}

impl SampleJob {
    /// The job that `options` are of the model of `session`, which pictures call `name`. `inputs` are the bytes of tensors in
    /// place of prompts, and what messages call them.
    ///
    /// # Errors
    /// [`Error::Request`] that names the option that the model cannot do, or that not even one image fits the memory.
    pub fn new<B: Backend, D: AsRef<[u8]>>(
        session: &Session<'_, B, D>,
        options: &SampleOptions,
        inputs: Option<(&str, &[u8])>,
        name: &str,
    ) -> Result<Self> {
        let model = session.model();
        let mut asked = options.request.clone();
        asked.prompts.all_classes = true;
        let tensors = inputs.map(|(source, bytes)| Tensors::new(source, bytes)).transpose()?;
        let mut request = asked.request(model, tensors)?;
        if request.latents.is_some() {
            let expected = "none: image i begins with the noise of seed + i";
            return Err(Error::request("--inputs latents", expected, "some"));
        }
        if request.noise == NoiseSource::Torch {
            request.noise = NoiseSource::TorchEach;
        }
        let images = options.images.unwrap_or(request.prompts.len());
        if !(1..=MOST).contains(&images) {
            return Err(Error::request("n-imgs", format!("1 to {MOST}"), images));
        }
        let [h, w] = request.picture_pixels(model);
        let ([lh, lw], f) = (request.latent_size, request.frames);
        let axes = |[c, f, h, w]: [usize; 4]| model.latents.axes([1, c, f, h, w])[1..].to_vec();
        let picture = match model.latents.video {
            true => vec![f, h, w, model.picture_channels()],
            false => vec![h, w, model.picture_channels()],
        };
        let mut job = SampleJob {
            images,
            batch: asked.batch_size.unwrap_or(BATCH),
            kept: options.kept,
            name: name.to_owned(),
            resize: asked.init.as_ref().and_then(|init| init.resize).unwrap_or_default(),
            tile: request.latent_size,
            inputs: inputs.map(|(_, bytes)| format!("{:016x}", xxh3_64(bytes))),
            shapes: Shapes {
                latents: options.kept.latents().then(|| axes([model.latents.channels, f, lh, lw])),
                images: options.kept.images().then_some(picture),
                texts: 0,
            },
            settings: BTreeMap::new(),
            request,
        };
        job.tile = session.plans(&job.request(0..job.batch.clamp(1, images)))?.tile;
        job.settings = job.told(model)?;
        Ok(job)
    }

    /// Its settings.
    fn told<D: AsRef<[u8]>>(&self, model: &Model<'_, D>) -> Result<BTreeMap<String, String>> {
        let text = self.text(model, &self.request(0..1), 0, "");
        let of_text = text.settings.into_iter().filter(|(name, _)| !NOT_OF_THE_JOB.contains(&name.as_str()));
        let mut settings: BTreeMap<String, String> = of_text.collect();
        let shown = match &self.request.prompts {
            Prompts::Unconditional(_) => None,
            Prompts::Classes(labels) => Some(text_of(labels)?),
            Prompts::Texts(texts) => Some(text_of(&(&texts.prompts, &texts.negatives))?),
            // Of the inputs, whose hash is there.
            Prompts::Embeddings(_) => None,
        };
        settings.extend(shown.map(|shown| ("Prompts hash".into(), format!("{:032x}", xxh3_128(shown.as_bytes())))));
        for (name, value) in [
            ("Images", self.images.to_string()),
            ("First seed", self.request.seed.to_string()),
            ("Model hash", format!("{:032x}", model.packed().hash())),
            ("Kept", format!("{:?}", self.kept).to_lowercase()),
        ] {
            settings.insert(name.into(), value);
        }
        Ok(settings)
    }

    /// Images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// What is kept of each.
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// What tells the job from others: a hash of all that its images depend on, but for what computes them.
    ///
    /// # Errors
    /// Never in practice: if a setting cannot be JSON.
    pub fn id(&self) -> Result<String> {
        id(&self.settings)
    }

    /// The request for consecutive images.
    pub(super) fn request(&self, images: Range<usize>) -> Request {
        let shown = self.request.prompts.len();
        let which: Vec<usize> = images.clone().map(|i| i % shown).collect();
        let mut request = self.request.clone();
        request.prompts = self.request.prompts.of_images(&which);
        request.seed = self.request.seed.wrapping_add(images.start as u64);
        request.batch_size = self.batch;
        request
    }

    /// The job with other prompts, which say the same.
    pub(super) fn with_prompts(&self, prompts: Prompts) -> Self {
        let mut job = self.clone();
        job.request.prompts = prompts;
        job
    }

    pub(super) fn prompts(&self) -> &Prompts {
        &self.request.prompts
    }

    /// Whether there is guidance.
    pub(super) fn guided(&self) -> bool {
        self.request.guidance_scale > 1.0
    }

    /// Most bytes of working memory, if somebody said so.
    pub(super) fn max_memory(&self) -> Option<usize> {
        self.request.max_memory
    }

    /// Images per pass through the network.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// The sizes of one image's tensors.
    pub(super) fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// How image `k` of `request`, which is one of this job, was made by `device`.
    pub(super) fn text<D: AsRef<[u8]>>(
        &self,
        model: &Model<'_, D>,
        request: &Request,
        k: usize,
        device: &str,
    ) -> Infotext {
        // The hash of the inputs is known: they may be large, and images many.
        let made = Made { model: &self.name, device, tile: self.tile, resize: self.resize, inputs: None };
        let mut text = infotext(model, request, &made, k..k + 1);
        self.inputs.iter().for_each(|hash| text.push("Inputs hash", hash));
        text
    }

    /// What a file of `images` of `shard`, made by `device`, says of itself.
    pub(super) fn header(&self, shard: Shard, images: Range<usize>, device: &str) -> Header {
        Header {
            format: FORMAT,
            job: self.settings.clone(),
            total: self.images,
            shard: [shard.index, shard.of],
            images: [images.start, images.end],
            device: device.to_owned(),
        }
    }
}

/// The hash of a job's settings.
pub(super) fn id(settings: &BTreeMap<String, String>) -> Result<String> {
    Ok(format!("{:032x}", xxh3_128(text_of(settings)?.as_bytes())))
}

/// The first setting in which a job differs from `other`: its name, and the two values.
pub(super) fn difference(
    ours: &BTreeMap<String, String>,
    theirs: &BTreeMap<String, String>,
) -> Option<(String, [String; 2])> {
    let value = |settings: &BTreeMap<String, String>, name: &str| settings.get(name).cloned().unwrap_or("none".into());
    let name = ours.keys().chain(theirs.keys()).find(|name| ours.get(*name) != theirs.get(*name))?;
    Some((name.clone(), [value(ours, name), value(theirs, name)]))
}
