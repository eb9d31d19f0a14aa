//! Models that are served: each makes orders of wishes, or refuses them.

use crate::job::{Order, Part};
use crate::refusal::Refusal;
use crate::settings::Limits;
use crate::wish::Wish;
use aquatint::image::ResizeMode;
use aquatint::options::{Made, RequestOptions, infotext};
use aquatint::raw::backend::MemoryRules;
use aquatint::{Error, Model, Plans, Request, Result};
use axum::http::StatusCode;
use std::sync::Arc;

/// Pictures at a time where a client does not say.
const AT_ONCE: usize = 8;

/// A model that is served.
pub struct Served {
    /// What clients call it: its file's name without the ending.
    pub id: String,
    /// The first ten digits of its hash, as they stand in the text of its pictures.
    pub hash: String,
    /// Height and width of its pictures, unless others are asked for.
    pub size: [usize; 2],
    /// Heights and widths are multiples of so many pixels.
    pub multiple: usize,
    /// Sampler steps, unless others are asked for.
    pub steps: usize,
    /// Guidance scale, unless another is asked for.
    pub guidance_scale: f32,
    /// The title of its sampler.
    pub sampler: &'static str,
    /// Whether it reads prompts; otherwise classes, or nothing.
    pub reads_prompts: bool,
    /// Whether pictures may begin with others.
    pub reads_pictures: bool,
    /// Whether a prompt names a class.
    pub has_classes: bool,
    /// Names of its classes, if they have names.
    pub classes: Vec<String>,
    kind: Box<dyn Kind>,
}

/// A model without its types: these calls are made once per request, never in a loop.
trait Kind: Send + Sync {
    fn request(&self, options: &RequestOptions) -> Result<Request>;
    fn plans(&self, request: &Request) -> Result<Plans>;
    fn pixels(&self, request: &Request) -> [usize; 2];
    fn text(&self, request: &Request, index: usize, tile: [usize; 2], resize: ResizeMode) -> String;
}

/// A model, what plans its memory, and names for the texts of pictures.
struct Typed<R, D: 'static> {
    model: &'static Model<'static, D>,
    rules: R,
    name: String,
    device: String,
}

impl<R: MemoryRules + Send + Sync, D: AsRef<[u8]> + Sync> Kind for Typed<R, D> {
    fn request(&self, options: &RequestOptions) -> Result<Request> {
        options.request(self.model, None)
    }

    fn plans(&self, request: &Request) -> Result<Plans> {
        Plans::of(&self.rules, self.model, request)
    }

    fn pixels(&self, request: &Request) -> [usize; 2] {
        request.picture_pixels(self.model)
    }

    fn text(&self, request: &Request, index: usize, tile: [usize; 2], resize: ResizeMode) -> String {
        let made = Made { model: &self.name, device: &self.device, tile, resize, inputs: None };
        infotext(self.model, request, &made, index..index + 1).to_string()
    }
}

impl Served {
    /// A model that lives as long as the process, on the device of this name, for which `rules` plan memory.
    ///
    /// # Errors
    /// A model that makes videos, which no API here can answer with.
    pub fn new<R, D>(id: &str, model: &'static Model<'static, D>, rules: R, device: &str) -> Result<Self>
    where
        R: MemoryRules + Send + Sync + 'static,
        D: AsRef<[u8]> + Sync,
    {
        if model.latents.video {
            return Err(Error::request("model", "one that makes images", format!("{id}, which makes videos")));
        }
        let classes = model.classes.as_ref();
        let classes = classes.map(|classes| classes.names.keys().map(|&label| classes.name(label)).collect());
        Ok(Served {
            id: id.to_owned(),
            hash: format!("{:032x}", model.packed().hash())[..10].to_owned(),
            size: model.latents.size.map(|n| n * model.latents.pixels),
            multiple: model.latents.pixel_multiple(),
            steps: model.steps,
            guidance_scale: model.guidance_scale,
            sampler: model.sampler.kind.title(),
            reads_prompts: model.text.is_some(),
            reads_pictures: model.image_encoder.is_some() || !model.decoder,
            has_classes: model.classes.is_some(),
            classes: classes.unwrap_or_default(),
            kind: Box::new(Typed { model, rules, name: id.to_owned(), device: device.to_owned() }),
        })
    }

    /// What the web UI calls it.
    pub fn title(&self) -> String {
        format!("{}.aqt [{}]", self.id, self.hash)
    }

    /// The order that fulfils `wish`, for the model with this number.
    ///
    /// # Errors
    /// Whatever the model cannot do, or this server does not.
    pub fn order(&self, model: usize, wish: &Wish, limits: &Limits) -> std::result::Result<Order, Refusal> {
        wish.check(limits)?;
        if self.has_classes && wish.prompt.trim().is_empty() {
            let names: Vec<_> = self.classes.iter().take(6).map(String::as_str).collect();
            let such = if names.is_empty() { String::new() } else { format!(" such as {}", names.join(", ")) };
            return Err(Refusal::field("prompt", format!("expected a class{such}, got nothing")));
        }
        let guided = self.reads_prompts && wish.sampling.cfg_scale.unwrap_or(self.guidance_scale) > 1.0;
        let seed = wish.seed();
        let at_once = wish.at_once.unwrap_or(AT_ONCE).clamp(1, AT_ONCE);
        let mut parts: Vec<Part> = Vec::new();
        for first in (0..wish.images).step_by(at_once) {
            let images = at_once.min(wish.images - first);
            let options = wish.options(seed.wrapping_add(first as u64), images, [self.reads_prompts, guided]);
            let request = self.kind.request(&options)?;
            let size = self.kind.pixels(&request);
            if size.iter().any(|&side| side > limits.side) {
                let message =
                    format!("expected at most {} pixels on a side, got {} x {}", limits.side, size[1], size[0]);
                return Err(Refusal::field("size", message));
            }
            // Parts of as many pictures differ in nothing that a plan knows.
            let same = parts.first().filter(|part| part.texts.len() == images).map(|part| part.plan);
            let plan = match same {
                Some(plan) => plan,
                None => {
                    let plans = self.kind.plans(&request)?;
                    // Where weights are read from the file, all programs of a job stay bound, so that the next job of its size
                    // begins at once; a device keeps what it has room for.
                    let all = plans.peak() == plans.arena();
                    let memory = if all { plans.total() } else { plans.peak() };
                    let keep = if all { memory } else { usize::MAX };
                    Plan { steps: plans.steps(), batch: plans.batch_size, tile: plans.tile, memory, keep }
                }
            };
            if plan.memory > limits.memory {
                let message =
                    format!("expected at most {} bytes of working memory, it takes {}", limits.memory, plan.memory);
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "out_of_memory", message));
            }
            let resize = options.init.as_ref().and_then(|init| init.resize).unwrap_or_default();
            let texts = (0..images).map(|i| self.kind.text(&request, i, plan.tile, resize)).collect();
            parts.push(Part { plan, size, texts, request });
        }
        Ok(Order { model, seed, format: wish.format, encoding: wish.format.encoding(wish.quality), parts })
    }
}

/// What is known of a request before it runs.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Calls of the denoiser for each batch.
    pub steps: usize,
    /// Pictures of a batch.
    pub batch: usize,
    /// Rows and columns of latents that are decoded at once.
    pub tile: [usize; 2],
    /// Bytes of working memory at most, and on a device of its largest program's weights.
    pub memory: usize,
    /// Bytes that a session keeps bound while it runs.
    pub keep: usize,
}

/// All models that are served, the first of them where a client names none.
#[derive(Clone)]
pub struct Catalogue(Arc<Vec<Served>>);

impl Catalogue {
    /// These models.
    ///
    /// # Errors
    /// None, or two of one id.
    pub fn new(models: Vec<Served>) -> Result<Self> {
        if models.is_empty() {
            return Err(Error::request("model", "at least one to serve", "none"));
        }
        for (i, model) in models.iter().enumerate() {
            if models[..i].iter().any(|other| other.id == model.id) {
                return Err(Error::request("model", "files of different names", format!("two called {}", model.id)));
            }
        }
        Ok(Catalogue(Arc::new(models)))
    }

    /// All of them.
    pub fn models(&self) -> &[Served] {
        &self.0
    }

    /// The model that a client means: its id, the web UI's title, or the hash; and its number.
    ///
    /// # Errors
    /// A name that is none of them.
    pub fn find(&self, name: Option<&str>) -> std::result::Result<(usize, &Served), Refusal> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok((0, &self.0[0])) };
        let means = |model: &Served| {
            model.id == name
                || model.title() == name
                || model.hash == name
                || name.strip_suffix(".aqt") == Some(&model.id)
        };
        self.0.iter().enumerate().find(|(_, model)| means(model)).ok_or_else(|| {
            let ids: Vec<_> = self.0.iter().map(|model| model.id.as_str()).collect();
            let message = format!("expected one of {}, got {name:?}", ids.join(", "));
            let refusal = Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message);
            Refusal { param: Some("model".into()), ..refusal }
        })
    }
}
