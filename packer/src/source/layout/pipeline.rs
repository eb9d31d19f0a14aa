//! Which model a file holds, told by names and shapes, and the pipeline that its networks form.

use super::autoencoder::Autoencoder;
use super::scheduler::{self, Betas};
use super::text::TextEncoder;
use super::unet::{Attention, Heads, Unet};
use super::{Entry, Network, Tensors, compvis, known, object, openclip, taming};
use crate::source::checkpoint::average_name;
use crate::source::diffusers::Object;
use crate::source::settings::MARKS;
use crate::source::view::Part;
use aquatint::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Before the denoiser's names.
const DENOISER: &str = "model.diffusion_model.";
/// Before the running averages of a whole model that was trained with them.
const AVERAGES: &str = "model_ema.diffusion_model";
/// Before the autoencoder's names.
const FIRST_STAGE: &str = "first_stage_model.";
/// Before the text encoder's names in Stable Diffusion.
const TEXT: &str = "cond_stage_model.transformer.";
/// Vectors of classes in latent diffusion.
const CLASSES: &str = "cond_stage_model.embedding.weight";
/// What latents are multiplied with, where training measured it.
const SCALE_FACTOR: &str = "scale_factor";
/// Rows of [`CLASSES`] in the model whose last row is for no class; the older one has none.
const CLASSES_AND_NONE: usize = 1001;

/// Tensors beside a model's weights: tables that follow from the schedule, counters, and what only training needs.
const IGNORED: [&str; 19] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    SCALE_FACTOR,
    "model_ema.decay",
    "model_ema.num_updates",
    "cond_stage_model.logit_scale",
    "denoiser.sigmas",
];
/// The same, by how names begin.
const IGNORED_PREFIXES: [&str; 5] = ["loss.", "first_stage_model.loss.", "optimizer_states.", "callbacks.", "ddim_"];
/// The same, by how names end.
const IGNORED_SUFFIXES: [&str; 3] = [".position_ids", ".logit_scale", ".attn_mask"];

/// A network of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Folder in a diffusers directory.
    pub name: &'static str,
    /// Library and class that diffusers would load it with.
    pub library: &'static str,
    /// Its class in diffusers or transformers; [`library`](Self::library) says which.
    pub class: &'static str,
    /// What its `config.json` would hold.
    pub config: Object,
    /// Where the file has each of its tensors.
    pub entries: Vec<Entry>,
}

/// A pipeline, as a file in its authors' layout has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// What people call models of this kind.
    pub label: &'static str,
    /// Class of the pipeline in diffusers.
    pub class: &'static str,
    /// What diffusers would save as `model_index.json`.
    pub index: Object,
    /// What it would save as `scheduler_config.json`.
    pub scheduler: Object,
    /// The networks of the pipeline.
    pub members: Vec<Member>,
}

impl Published {
    fn new(label: &'static str, class: &'static str, scheduler: Object, members: Vec<Member>) -> Self {
        let mut index = object(json!({ "_class_name": class }));
        index.insert("scheduler".into(), json!(["diffusers", scheduler["_class_name"]]));
        for member in &members {
            index.insert(member.name.into(), json!([member.library, member.class]));
        }
        Published { label, class, index, scheduler, members }
    }

    fn with(mut self, field: &str, value: Value) -> Self {
        self.index.insert(field.into(), value);
        self
    }

    /// Has the autoencoder multiply its latents with `factor`, as `by` says.
    ///
    /// # Errors
    /// [`Error::Request`] if `tensors` have another factor, which training measured.
    pub(super) fn scale_latents(&mut self, tensors: &dyn Tensors, factor: f64, by: String) -> Result<()> {
        match scale_factor(tensors)? {
            Some(measured) if (measured - factor).abs() > 1e-4 * measured => {
                Err(Error::request(by, format!("{measured}, as the weights have it"), factor))
            }
            Some(_) => Ok(()),
            None => {
                let vaes = self.members.iter_mut().filter(|m| m.config.contains_key("scaling_factor"));
                vaes.for_each(|vae| drop(vae.config.insert("scaling_factor".into(), factor.into())));
                Ok(())
            }
        }
    }

    /// Names and shapes of all tensors of the file, each once.
    pub fn file(&self) -> Vec<(String, Vec<usize>)> {
        let mut seen = BTreeSet::new();
        let entries = self.members.iter().flat_map(|m| &m.entries);
        entries.filter(|e| seen.insert(&e.source)).map(|e| (e.source.clone(), e.source_dims.clone())).collect()
    }
}

/// `unet` under the names of latent diffusion.
fn denoiser(unet: &Unet) -> Member {
    let entries = compvis::unet_entries(unet, DENOISER);
    Member { name: "unet", library: "diffusers", class: unet.class(), config: unet.config(), entries }
}

fn first_stage(vae: &Autoencoder) -> Member {
    let entries = taming::autoencoder_entries(vae, FIRST_STAGE);
    Member { name: vae.folder(), library: "diffusers", class: vae.class(), config: vae.config(), entries }
}

fn text_encoder(name: &'static str, encoder: &TextEncoder, entries: Vec<Entry>) -> Member {
    Member { name, library: "transformers", class: encoder.class(), config: encoder.config(), entries }
}

/// The UNet of DDIM on pixels.
pub(super) fn ddim(unet: &Unet, prefix: &str) -> Published {
    let entries = taming::unet_entries(unet, prefix);
    let member = Member { name: "unet", library: "diffusers", class: unet.class(), config: unet.config(), entries };
    Published::new("DDIM on pixels", "DDIMPipeline", scheduler::ddim_pixels(), vec![member])
}

/// Latent diffusion without a condition.
pub(super) fn unconditional(unet: &Unet, vae: &Autoencoder, betas: Betas) -> Published {
    let members = vec![denoiser(unet), first_stage(vae)];
    Published::new("unconditional latent diffusion", "LDMPipeline", scheduler::ddim_latents(betas), members)
}

/// Latent diffusion by class; `classes` are the rows of their table. diffusers has no such pipeline.
pub(super) fn class_conditional(unet: &Unet, vae: &Autoencoder, classes: usize, betas: Betas) -> Published {
    let features = match unet.attention {
        Attention::Context { features, .. } => features,
        Attention::Pixels(_) => 0,
    };
    let dims = vec![classes, features];
    let source_dims = dims.clone();
    let table = Entry { key: "embedding.weight".into(), dims, source: CLASSES.into(), source_dims, part: Part::Whole };
    let config = json!({"_class_name": "Embedding", "num_embeddings": classes, "embedding_dim": features});
    let table = Member {
        name: "class_embedding",
        library: "torch",
        class: "Embedding",
        config: object(config),
        entries: vec![table],
    };
    let members = vec![denoiser(unet), first_stage(vae), table];
    Published::new(
        "class-conditional latent diffusion",
        "LDMClassToImagePipeline",
        scheduler::ddim_latents(betas),
        members,
    )
}

/// Stable Diffusion 1.x; `text_prefix` is what its text encoder's names begin with.
pub(super) fn stable_diffusion(
    unet: &Unet,
    vae: &Autoencoder,
    text: &TextEncoder,
    text_prefix: &str,
    betas: Betas,
) -> Published {
    let text = text_encoder("text_encoder", text, openclip::transformers_entries(text, text_prefix));
    let members = vec![denoiser(unet), first_stage(vae), text];
    Published::new("Stable Diffusion 1.x", "StableDiffusionPipeline", scheduler::pndm(betas), members)
        .with("tokenizer", json!(["transformers", "CLIPTokenizer"]))
}

/// SDXL; `first` is its text encoder under transformers' names and what they begin with.
pub(super) fn sdxl(unet: &Unet, vae: &Autoencoder, first: (&TextEncoder, &str), second: &TextEncoder) -> Published {
    let second = openclip_member(second, "conditioner.embedders.1.model.");
    let first = text_encoder("text_encoder", first.0, openclip::transformers_entries(first.0, first.1));
    let members = vec![denoiser(unet), first_stage(vae), first, second];
    Published::new("SDXL base", "StableDiffusionXLPipeline", scheduler::euler(Betas::scaled(0.00085, 0.012)), members)
        .with("force_zeros_for_empty_prompt", json!(true))
        .with("tokenizer", json!(["transformers", "CLIPTokenizer"]))
        .with("tokenizer_2", json!(["transformers", "CLIPTokenizer"]))
}

/// The refiner of Stable Diffusion XL: a second denoiser for the last steps.
pub(super) fn refiner(unet: &Unet, vae: &Autoencoder, text: &TextEncoder) -> Published {
    let text = openclip_member(text, "conditioner.embedders.0.model.");
    let members = vec![denoiser(unet), first_stage(vae), text];
    let scheduler = scheduler::euler(Betas::scaled(0.00085, 0.012));
    Published::new("SDXL refiner", "StableDiffusionXLImg2ImgPipeline", scheduler, members)
        .with("force_zeros_for_empty_prompt", json!(false))
        .with("requires_aesthetics_score", json!(true))
        .with("text_encoder", json!([null, null]))
        .with("tokenizer", json!([null, null]))
        .with("tokenizer_2", json!(["transformers", "CLIPTokenizer"]))
}

fn openclip_member(encoder: &TextEncoder, prefix: &str) -> Member {
    text_encoder("text_encoder_2", encoder, openclip::openclip_entries(encoder, prefix))
}

/// The model that `tensors` are, if it is one of [`known::ALL`], of any size.
///
/// # Errors
/// [`Error::Request`] if it is none of these, naming the nearest; if a tensor is missing, or there is one too many.
pub fn recognise(tensors: &dyn Tensors) -> Result<Published> {
    let keys = tensors.keys();
    let any = |prefix: &str| keys.iter().any(|key| key.starts_with(prefix));
    let mut published = if any(DENOISER) && any("conditioner.embedders.") {
        read_sgm(tensors, any("conditioner.embedders.1."))?
    } else if any(DENOISER) && (any(TEXT) || any(CLASSES) || !any("cond_stage_model.")) {
        read_latent(tensors)?
    } else if let Some(prefix) = ["", "module."].into_iter().find(|p| any(&format!("{p}temb.dense.0."))) {
        // The second is what training on several devices leaves.
        ddim(&taming::read_unet(Network { tensors, prefix, component: "unet" })?, prefix)
    } else {
        return Err(unknown(tensors.name(), &keys));
    };
    let mut used: BTreeSet<String> = published.file().into_iter().map(|(name, _)| name).collect();
    if any(AVERAGES) {
        // Samplers use the averages; the weights that they follow stay behind.
        for entry in published.members.iter_mut().flat_map(|m| &mut m.entries) {
            if let Some(average) = average_name(&entry.source).filter(|_| entry.source.starts_with(DENOISER)) {
                used.insert(average.clone());
                entry.source = average;
            }
        }
    }
    let extra: Vec<_> = keys.iter().filter(|key| !used.contains(**key) && !ignored(key)).collect();
    if let Some(first) = extra.first() {
        let more = if extra.len() > 1 { format!(", and {} more", extra.len() - 1) } else { String::new() };
        let expected = format!("only the {} tensors of {}", used.len(), published.label);
        return Err(Error::request(format!("model {}", tensors.name()), expected, format!("also {first}{more}")));
    }
    Ok(published)
}

fn ignored(key: &str) -> bool {
    IGNORED.contains(&key)
        || MARKS.contains(&key)
        || IGNORED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || IGNORED_SUFFIXES.iter().any(|suffix| key.ends_with(suffix))
}

/// Everything with the prefixes of latent diffusion: Stable Diffusion too.
fn read_latent(tensors: &dyn Tensors) -> Result<Published> {
    let net = |prefix, component| Network { tensors, prefix, component };
    let unet = net(DENOISER, "unet");
    let shape = |key: &str| tensors.shape(key);
    let vae = |pixels: usize, scaling_factor: f64| {
        let untold = taming::Untold { sample_size: pixels, scaling_factor };
        taming::read_autoencoder(net(FIRST_STAGE, "vae"), untold)
    };
    let sized = |vae: &Autoencoder, heads| {
        let untold = compvis::Untold { sample_size: vae.sample_size / vae.pixels_per_latent(), heads, added: None };
        compvis::read_unet(unet, |_| untold)
    };
    if let Some(classes) = shape(CLASSES) {
        let classes = classes.first().copied().unwrap_or_default();
        let heads = if classes == CLASSES_AND_NONE { Heads::Count(1) } else { Heads::Features(32) };
        let vae = vae(256, scale_factor(tensors)?.unwrap_or(1.0))?;
        let unet = sized(&vae, heads)?;
        let betas = Betas::of(tensors, Betas::scaled(0.0015, 0.0195))?;
        return Ok(class_conditional(&unet, &vae, classes, betas));
    }
    // A denoiser that reads a context needs someone to write it; who is missing is said when it is read.
    let guided = |key: &&str| key.starts_with(TEXT) || key.starts_with(DENOISER) && key.contains(".attn2.");
    if tensors.keys().iter().any(guided) {
        let vae = vae(512, scale_factor(tensors)?.unwrap_or(0.18215))?;
        let unet = sized(&vae, Heads::Count(8))?;
        let (text, prefix) = openclip::read_transformers(net(TEXT, "text_encoder"))?;
        let betas = Betas::of(tensors, Betas::scaled(0.00085, 0.012))?;
        return Ok(stable_diffusion(&unet, &vae, &text, &prefix, betas));
    }
    // diffusers' VQModel would scale by 0.18215 if nothing were said; the original does not.
    let vae = vae(256, scale_factor(tensors)?.unwrap_or(1.0))?;
    let untold = |unet: &Unet| compvis::Untold {
        sample_size: vae.sample_size / vae.pixels_per_latent(),
        // Churches have 8 heads everywhere; bedrooms and faces heads of 32 features.
        heads: if unet.scale_shift { Heads::Count(8) } else { Heads::Features(32) },
        added: None,
    };
    let unet = compvis::read_unet(unet, untold)?;
    let end = if unet.scale_shift { 0.0155 } else { 0.0195 };
    Ok(unconditional(&unet, &vae, Betas::of(tensors, Betas::scaled(0.0015, end))?))
}

/// SDXL: two text encoders in the base, one in the refiner.
fn read_sgm(tensors: &dyn Tensors, base: bool) -> Result<Published> {
    let net = |prefix, component| Network { tensors, prefix, component };
    let untold = taming::Untold { sample_size: 1024, scaling_factor: 0.13025 };
    let vae = taming::read_autoencoder(net(FIRST_STAGE, "vae"), untold)?;
    let (second, numbers) = match base {
        // Original size, crop and target size, two numbers each; the refiner has a score for the target's.
        true => (net("conditioner.embedders.1.model.", "text_encoder_2"), 6),
        false => (net("conditioner.embedders.0.model.", "text_encoder_2"), 5),
    };
    let second = openclip::read_openclip(second)?;
    let untold = compvis::Untold {
        sample_size: vae.sample_size / vae.pixels_per_latent(),
        heads: Heads::Features(64),
        added: second.projection.map(|features| [features, numbers]),
    };
    let unet = compvis::read_unet(net(DENOISER, "unet"), |_| untold)?;
    if !base {
        return Ok(refiner(&unet, &vae, &second));
    }
    let (first, prefix) = openclip::read_transformers(net("conditioner.embedders.0.transformer.", "text_encoder"))?;
    Ok(sdxl(&unet, &vae, (&first, &prefix), &second))
}

/// The factor of latents that training measured, if the file has it.
fn scale_factor(tensors: &dyn Tensors) -> Result<Option<f64>> {
    if tensors.shape(SCALE_FACTOR).is_none() {
        return Ok(None);
    }
    match tensors.values(SCALE_FACTOR)?[..] {
        [factor] if factor > 0.0 => Ok(Some(f64::from(factor))),
        ref other => {
            let what = format!("{}: {SCALE_FACTOR}", tensors.name());
            Err(Error::request(what, "one positive number", format!("{other:?}")))
        }
    }
}

/// The error of a file that is none of the known models: which come near, and what they lack.
fn unknown(file: &str, keys: &[&str]) -> Error {
    let have: BTreeSet<&str> = keys.iter().copied().collect();
    let mut near: Vec<_> = known::ALL
        .iter()
        .filter_map(|(label, published)| {
            let names = published().file();
            let found = names.iter().filter(|(name, _)| have.contains(&name[..])).count();
            let missing = names.iter().map(|(name, _)| name).find(|name| !have.contains(&name[..])).cloned();
            // Of all names on either side.
            let share = 100 * found / (names.len() + have.len() - found).max(1);
            (found > 0).then_some((share, *label, missing))
        })
        .collect();
    near.sort_by_key(|(share, ..)| std::cmp::Reverse(*share));
    let lines = near.iter().take(3).map(|(share, label, missing)| {
        let lacks = missing.as_ref().map_or(String::new(), |name| format!(", no {name}"));
        format!("{share} % in common with {label}{lacks}")
    });
    let got = match lines.collect::<Vec<_>>() {
        lines if lines.is_empty() => {
            format!("{} tensors of none of them: {}...", keys.len(), keys.first().unwrap_or(&"nothing"))
        }
        lines => lines.join("; "),
    };
    let labels: Vec<_> = known::ALL.iter().map(|(label, _)| *label).collect();
    Error::request(format!("model {file}"), format!("a model in a known layout: {}", labels.join(", ")), got)
}
