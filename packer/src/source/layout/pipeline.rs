//! Which model a file holds, told by names and shapes, and the pipeline that its networks form.

use super::autoencoder::Autoencoder;
use super::dit::{self, Dit};
use super::elsewhere::{AUTOENCODER, ENCODER, Elsewhere, own};
use super::hunyuan::{self, Hunyuan};
use super::ignored::{ignored, quantizes};
use super::known::unknown;
use super::latte::Latte;
use super::pixart::{self, NULL_CAPTION, Pixart};
use super::scheduler::{self, Betas};
use super::stdit::{self, Stdit};
use super::text::TextEncoder;
use super::unet::{Attention, Heads, Unet};
use super::{Entry, Network, Tensors, compvis, object, openclip, taming};
use crate::source::checkpoint::average_name;
use crate::source::diffusers::Object;
use crate::source::view::Part;
use aquatint::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Before the denoiser's names.
pub(super) const DENOISER: &str = "model.diffusion_model.";
/// Before the running averages of a whole model that was trained with them.
const AVERAGES: &str = "model_ema.diffusion_model";
/// Before the autoencoder's names.
pub(super) const FIRST_STAGE: &str = "first_stage_model.";
/// Before the text encoder's names in Stable Diffusion.
const TEXT: &str = "cond_stage_model.transformer.";
/// Before all names of text encoders.
pub(super) const TEXTS: [&str; 2] = ["cond_stage_model.", "conditioner.embedders."];
/// Vectors of classes in latent diffusion.
const CLASSES: &str = "cond_stage_model.embedding.weight";
/// What latents are multiplied with, where training measured it.
pub(super) const SCALE_FACTOR: &str = "scale_factor";
/// Per axis, in the autoencoder of Stable Diffusion.
const PIXELS_PER_LATENT: usize = 8;
/// Features of the vector of a text in SDXL, and of a number's sinusoids.
const PUBLISHED_VECTOR: usize = 1280;
const PUBLISHED_SINUSOIDS: usize = 256;
/// Rows of [`CLASSES`] in the model whose last row is for no class; the older one has none.
const CLASSES_AND_NONE: usize = 1001;

/// Field of an index that diffusers has no word for: how many channels of latents guidance leads.
pub const GUIDED_CHANNELS: &str = "guided_channels";
/// Another: steps when none are asked for.
pub const STEPS: &str = "num_inference_steps";
/// Likewise whether guidance leads away from the caption that the transformer has learned for none, where it could be another.
pub const LEARNED_NULL: &str = "learned_null_caption";

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

    /// A transformer that reads texts as diffusers has it: with this autoencoder, without the caption for none, and without text
    /// encoders.
    pub(super) fn in_directory(mut self, vae: &Autoencoder) -> Self {
        for member in &mut self.members {
            member.entries.retain(|entry| entry.key != NULL_CAPTION);
        }
        self.index.remove(LEARNED_NULL);
        let vae = first_stage(vae);
        self.index.insert(vae.name.into(), json!([vae.library, vae.class]));
        self.members.push(vae);
        self
    }

    /// The same that names T5 as its text encoder, which is not among the members.
    pub(super) fn captioned(self) -> Self {
        self.with("text_encoder", json!(["transformers", "T5EncoderModel"]))
            .with("tokenizer", json!(["transformers", "T5Tokenizer"]))
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
    first_stage_at(vae, FIRST_STAGE)
}

/// `vae` in a file where its names begin with `prefix`.
pub(super) fn first_stage_at(vae: &Autoencoder, prefix: &str) -> Member {
    let entries = taming::autoencoder_entries(vae, prefix);
    Member { name: vae.folder(), library: "diffusers", class: vae.class(), config: vae.config(), entries }
}

pub(super) fn text_encoder(name: &'static str, encoder: &TextEncoder, entries: Vec<Entry>) -> Member {
    Member { name, library: "transformers", class: encoder.class(), config: encoder.config(), entries }
}

/// The UNet of DDIM on pixels.
pub(super) fn ddim(unet: &Unet, prefix: &str) -> Published {
    let entries = taming::unet_entries(unet, prefix);
    let member = Member { name: "unet", library: "diffusers", class: unet.class(), config: unet.config(), entries };
    Published::new("DDIM on pixels", "DDIMPipeline", scheduler::ddim_linear(), vec![member])
}

/// A network that the file may lack, because another gives it.
type Given<'a, T> = Option<&'a T>;

/// Latent diffusion without a condition.
pub(super) fn unconditional(unet: &Unet, vae: Given<Autoencoder>, betas: Betas) -> Published {
    let members = [denoiser(unet)].into_iter().chain(vae.map(first_stage)).collect();
    Published::new("unconditional latent diffusion", "LDMPipeline", scheduler::ddim_latents(betas), members)
}

/// Latent diffusion by class; `classes` are the rows of their table. diffusers has no such pipeline.
pub(super) fn class_conditional(unet: &Unet, vae: Given<Autoencoder>, classes: usize, betas: Betas) -> Published {
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
    let members = [denoiser(unet)].into_iter().chain(vae.map(first_stage)).chain([table]).collect();
    Published::new(
        "class-conditional latent diffusion",
        "LDMClassToImagePipeline",
        scheduler::ddim_latents(betas),
        members,
    )
}

/// DiT, or a Latte of classes, whose autoencoder is never in the same file. Its authors sample in 250 steps with the variances it learned, and
/// guide the first three channels.
pub(super) fn class_transformer(dit: &Dit) -> Published {
    let (class, config, entries) = (dit.class(), dit.config(), dit.entries());
    let member = Member { name: "transformer", library: "diffusers", class, config, entries };
    if dit.frames.is_some() {
        // All four channels are guided.
        return Published::new("Latte of classes", "LatteClassPipeline", scheduler::iddpm(), vec![member])
            .with(STEPS, json!(250));
    }
    Published::new("DiT", "DiTPipeline", scheduler::iddpm(), vec![member])
        .with(GUIDED_CHANNELS, json!(3))
        .with(STEPS, json!(250))
}

/// Hunyuan-DiT, whose text encoders and autoencoder are never in the same file.
pub(super) fn hunyuan(hunyuan: &Hunyuan) -> Published {
    let (class, config, entries) = ("HunyuanDiT2DModel", hunyuan.config(), hunyuan.entries());
    let member = Member { name: "transformer", library: "diffusers", class, config, entries };
    // What tells the versions apart.
    let (label, last_beta) = if hunyuan.styled { ("Hunyuan-DiT 1.1", 0.03) } else { ("Hunyuan-DiT 1.2", 0.018) };
    let scheduler = scheduler::ddpm_velocity(Betas::scaled(0.00085, last_beta));
    Published::new(label, "HunyuanDiTPipeline", scheduler, vec![member])
}

/// PixArt, whose text encoder and autoencoder are never in the same file. The caption for none is learned.
pub(super) fn text_transformer(pixart: &Pixart) -> Published {
    let (config, entries) = (pixart.config(), pixart.entries());
    let member =
        Member { name: "transformer", library: "diffusers", class: "PixArtTransformer2DModel", config, entries };
    let (label, class) = match pixart.is_sigma() {
        true => ("PixArt-Sigma", "PixArtSigmaPipeline"),
        false => ("PixArt-alpha", "PixArtAlphaPipeline"),
    };
    let published = Published::new(label, class, scheduler::dpm_solver(), vec![member]).with(STEPS, json!(20));
    published.with(LEARNED_NULL, json!(!pixart.is_sigma()))
}

/// Latte, which no single file holds.
pub(super) fn interleaved_transformer(latte: &Latte) -> Published {
    let (config, entries) = (latte.config(), latte.entries());
    let member =
        Member { name: "transformer", library: "diffusers", class: "LatteTransformer3DModel", config, entries };
    Published::new("Latte", "LattePipeline", scheduler::ddim_linear(), vec![member])
}

/// Open-Sora 1.0, likewise.
pub(super) fn video_transformer(stdit: &Stdit) -> Published {
    let (config, entries) = (stdit.config(), stdit.entries());
    let member =
        Member { name: "transformer", library: "diffusers", class: crate::lower::stdit::CLASS, config, entries };
    Published::new("Open-Sora 1.0", "OpenSoraPipeline", scheduler::iddpm(), vec![member])
        .with(GUIDED_CHANNELS, json!(3))
        .with(STEPS, json!(100))
}

/// Stable Diffusion 1.x; its text encoder comes with what its names begin with.
pub(super) fn stable_diffusion(
    unet: &Unet,
    vae: Given<Autoencoder>,
    text: Option<(&TextEncoder, &str)>,
    betas: Betas,
) -> Published {
    let text = text.map(|(text, prefix)| first_encoder(text, prefix));
    let members = [denoiser(unet)].into_iter().chain(vae.map(first_stage)).chain(text).collect();
    Published::new("Stable Diffusion 1.x", "StableDiffusionPipeline", scheduler::pndm(betas), members)
        .with("tokenizer", json!(["transformers", "CLIPTokenizer"]))
}

/// SDXL; `text` are its text encoders, the first under transformers' names and with what they begin with.
pub(super) fn sdxl(
    unet: &Unet,
    vae: Given<Autoencoder>,
    text: Option<((&TextEncoder, &str), &TextEncoder)>,
) -> Published {
    let text = text.map(|((first, prefix), second)| {
        [first_encoder(first, prefix), openclip_member(second, "conditioner.embedders.1.model.")]
    });
    let text = text.into_iter().flatten();
    let members = [denoiser(unet)].into_iter().chain(vae.map(first_stage)).chain(text).collect();
    Published::new("SDXL base", "StableDiffusionXLPipeline", scheduler::euler(Betas::scaled(0.00085, 0.012)), members)
        .with("force_zeros_for_empty_prompt", json!(true))
        .with("tokenizer", json!(["transformers", "CLIPTokenizer"]))
        .with("tokenizer_2", json!(["transformers", "CLIPTokenizer"]))
}

/// The refiner of Stable Diffusion XL: a second denoiser for the last steps.
pub(super) fn refiner(unet: &Unet, vae: Given<Autoencoder>, text: Given<TextEncoder>) -> Published {
    let text = text.map(|text| openclip_member(text, "conditioner.embedders.0.model."));
    let members = [denoiser(unet)].into_iter().chain(vae.map(first_stage)).chain(text).collect();
    let scheduler = scheduler::euler(Betas::scaled(0.00085, 0.012));
    Published::new("SDXL refiner", "StableDiffusionXLImg2ImgPipeline", scheduler, members)
        .with("force_zeros_for_empty_prompt", json!(false))
        .with("requires_aesthetics_score", json!(true))
        .with("text_encoder", json!([null, null]))
        .with("tokenizer", json!([null, null]))
        .with("tokenizer_2", json!(["transformers", "CLIPTokenizer"]))
}

fn first_encoder(encoder: &TextEncoder, prefix: &str) -> Member {
    text_encoder("text_encoder", encoder, openclip::transformers_entries(encoder, prefix))
}

pub(super) fn openclip_member(encoder: &TextEncoder, prefix: &str) -> Member {
    text_encoder("text_encoder_2", encoder, openclip::openclip_entries(encoder, prefix))
}

/// The model that `tensors` are, if it is one of [`known::ALL`](super::known::ALL), of any size.
///
/// # Errors
/// [`Error::Request`] if it is none of these, naming the nearest; if a tensor is missing, or there is one too many.
pub fn recognise(tensors: &dyn Tensors) -> Result<Published> {
    recognise_without(tensors, Elsewhere::default())
}

/// The same without the networks that are `elsewhere`; the file's own, if it has them, are not looked at.
///
/// # Errors
/// As for [`recognise`].
pub fn recognise_without(tensors: &dyn Tensors, elsewhere: Elsewhere) -> Result<Published> {
    let keys = tensors.keys();
    let any = |prefix: &str| keys.iter().any(|key| key.starts_with(prefix));
    let xl = any("conditioner.embedders.") || any(&format!("{DENOISER}label_emb."));
    let mut published = if any(DENOISER) && xl {
        read_sgm(tensors, elsewhere)?
    } else if any(DENOISER) && (any(TEXT) || any(CLASSES) || !any("cond_stage_model.")) {
        read_latent(tensors, elsewhere)?
    } else if any("x_embedder.proj.") && any("blocks.0.adaLN_modulation.1.") {
        own(tensors, elsewhere.autoencoder, AUTOENCODER, || Ok(()))?;
        class_transformer(&dit::read(Network { tensors, prefix: "", component: "transformer" })?)
    } else if any("x_embedder.proj.") && any("blocks.0.default_modulation.1.") {
        own(tensors, elsewhere.autoencoder, AUTOENCODER, || Ok(()))?;
        hunyuan(&hunyuan::read(Network { tensors, prefix: "", component: "transformer" })?)
    } else if any("x_embedder.proj.") && any("blocks.0.cross_attn.") {
        own(tensors, elsewhere.autoencoder, AUTOENCODER, || Ok(()))?;
        own(tensors, elsewhere.text, ENCODER, || Ok(()))?;
        let net = Network { tensors, prefix: "", component: "transformer" };
        match any("blocks.0.attn_temp.") {
            true => video_transformer(&stdit::read(net)?),
            false => text_transformer(&pixart::read(net)?),
        }
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
    let replaced = |key: &str| {
        elsewhere.autoencoder && key.starts_with(FIRST_STAGE)
            || elsewhere.text && TEXTS.iter().any(|prefix| key.starts_with(prefix))
    };
    let empty = |key: &str| tensors.shape(key).is_some_and(|shape| shape.contains(&0));
    let quantizers: BTreeSet<String> = (keys.iter().filter(|key| quantizes(tensors, key)))
        .flat_map(|key| [average_name(key), Some((*key).to_owned())])
        .flatten()
        .collect();
    let extra = keys.iter().filter(|key| !used.contains(**key) && !quantizers.contains(**key));
    let extra = extra.filter(|key| !ignored(key) && !replaced(key) && !empty(key));
    let extra: Vec<_> = extra.collect();
    if let Some(first) = extra.first() {
        let more = if extra.len() > 1 { format!(", and {} more", extra.len() - 1) } else { String::new() };
        let expected = format!("only the {} tensors of {}", used.len(), published.label);
        return Err(Error::request(format!("model {}", tensors.name()), expected, format!("also {first}{more}")));
    }
    Ok(published)
}

/// Height and width of the latents of images of so many pixels, of the autoencoder or of the usual one.
fn latents(vae: Given<Autoencoder>, pixels: usize) -> usize {
    vae.map_or(pixels / PIXELS_PER_LATENT, |vae| vae.sample_size / vae.pixels_per_latent())
}

/// Everything with the prefixes of latent diffusion: Stable Diffusion too.
fn read_latent(tensors: &dyn Tensors, elsewhere: Elsewhere) -> Result<Published> {
    let net = |prefix, component| Network { tensors, prefix, component };
    let shape = |key: &str| tensors.shape(key);
    let vae = |pixels: usize, scaling_factor: f64| {
        own(tensors, elsewhere.autoencoder, AUTOENCODER, || {
            let untold = taming::Untold { sample_size: pixels, scaling_factor };
            taming::read_autoencoder(net(FIRST_STAGE, "vae"), untold)
        })
    };
    let sized = |sample_size: usize, heads| {
        compvis::read_unet(net(DENOISER, "unet"), |_| compvis::Untold { sample_size, heads, added: None })
    };
    if let Some(classes) = shape(CLASSES) {
        let classes = classes.first().copied().unwrap_or_default();
        let heads = if classes == CLASSES_AND_NONE { Heads::Count(1) } else { Heads::Features(32) };
        let vae = vae(256, scale_factor(tensors)?.unwrap_or(1.0))?;
        let unet = sized(latents(vae.as_ref(), 256), heads)?;
        let betas = Betas::of(tensors, Betas::scaled(0.0015, 0.0195))?;
        return Ok(class_conditional(&unet, vae.as_ref(), classes, betas));
    }
    // A denoiser that reads a context needs someone to write it; who is missing is said when it is read.
    let guided = |key: &&str| key.starts_with(TEXT) || key.starts_with(DENOISER) && key.contains(".attn2.");
    if tensors.keys().iter().any(guided) {
        let vae = vae(512, scale_factor(tensors)?.unwrap_or(0.18215))?;
        let unet = sized(latents(vae.as_ref(), 512), Heads::Count(8))?;
        let text = own(tensors, elsewhere.text, ENCODER, || openclip::read_transformers(net(TEXT, "text_encoder")))?;
        let text = text.as_ref().map(|(text, prefix)| (text, &prefix[..]));
        let betas = Betas::of(tensors, Betas::scaled(0.00085, 0.012))?;
        return Ok(stable_diffusion(&unet, vae.as_ref(), text, betas));
    }
    // diffusers' VQModel would scale by 0.18215 if nothing were said; the original does not.
    let vae = vae(256, scale_factor(tensors)?.unwrap_or(1.0))?;
    let untold = |unet: &Unet| compvis::Untold {
        sample_size: latents(vae.as_ref(), 256),
        // Churches have 8 heads everywhere; bedrooms and faces heads of 32 features.
        heads: if unet.scale_shift { Heads::Count(8) } else { Heads::Features(32) },
        added: None,
    };
    let unet = compvis::read_unet(net(DENOISER, "unet"), untold)?;
    let end = if unet.scale_shift { 0.0155 } else { 0.0195 };
    Ok(unconditional(&unet, vae.as_ref(), Betas::of(tensors, Betas::scaled(0.0015, end))?))
}

/// SDXL: two text encoders in the base, one in the refiner.
fn read_sgm(tensors: &dyn Tensors, elsewhere: Elsewhere) -> Result<Published> {
    let net = |prefix, component| Network { tensors, prefix, component };
    let vae = own(tensors, elsewhere.autoencoder, AUTOENCODER, || {
        let untold = taming::Untold { sample_size: 1024, scaling_factor: 0.13025 };
        taming::read_autoencoder(net(FIRST_STAGE, "vae"), untold)
    })?;
    let vae = vae.as_ref();
    let base = tensors.keys().iter().any(|key| key.starts_with("conditioner.embedders.1."));
    let second = own(tensors, elsewhere.text, ENCODER, || {
        let prefix = if base { "conditioner.embedders.1.model." } else { "conditioner.embedders.0.model." };
        openclip::read_openclip(net(prefix, "text_encoder_2"))
    })?;
    let features = second.as_ref().and_then(|second| second.projection).unwrap_or(PUBLISHED_VECTOR);
    let numbers = match &second {
        // Original size, crop and target size, two numbers each; the refiner has a score for the target's.
        Some(_) => {
            if base {
                6
            } else {
                5
            }
        }
        None => {
            let all = net(DENOISER, "unet").dim("label_emb.0.0.weight", 1)?;
            all.saturating_sub(features) / PUBLISHED_SINUSOIDS
        }
    };
    let untold = compvis::Untold {
        sample_size: latents(vae, 1024),
        heads: Heads::Features(64),
        added: Some([features, numbers.max(1)]),
    };
    let unet = compvis::read_unet(net(DENOISER, "unet"), |_| untold)?;
    let Some(second) = &second else {
        return Ok(if numbers == 5 { refiner(&unet, vae, None) } else { sdxl(&unet, vae, None) });
    };
    if !base {
        return Ok(refiner(&unet, vae, Some(second)));
    }
    let (first, prefix) = openclip::read_transformers(net("conditioner.embedders.0.transformer.", "text_encoder"))?;
    Ok(sdxl(&unet, vae, Some(((&first, &prefix), second))))
}

/// The factor of latents that training measured, if the file has it.
pub(super) fn scale_factor(tensors: &dyn Tensors) -> Result<Option<f64>> {
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
