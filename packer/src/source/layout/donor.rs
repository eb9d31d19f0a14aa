//! Single networks in files: of a whole model in its authors' layout, or alone, as autoencoders and text encoders are
//! published too.

use super::pipeline::{Member, openclip_member, text_encoder};
use super::{Network, Tensors, openclip, pipeline, taming, text::TextEncoder};
use aquatint::error::Result;

/// What an autoencoder's names may begin with.
const AUTOENCODERS: [&str; 3] = ["first_stage_model.", "vae.", ""];
/// What names of transformers may begin with.
const TRANSFORMERS: [&str; 3] = ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", ""];
/// What names of OpenCLIP may begin with.
const OPENCLIPS: [&str; 3] = ["conditioner.embedders.1.model.", "conditioner.embedders.0.model.", ""];
/// SDXL's second encoder alone, under transformers' names.
const PROJECTION: &str = "text_projection.weight";

/// The autoencoder among `tensors`, if there is one in latent diffusion's layout, for a pipeline of class `class`. Its
/// factor is what the file says, else what the published models of that class have.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first of its tensors that is missing or has too few axes.
pub fn autoencoder(tensors: &dyn Tensors, class: &str) -> Result<Option<Member>> {
    let has = |prefix: &&&str| tensors.shape(&format!("{prefix}decoder.up.0.block.0.norm2.weight")).is_some();
    let Some(prefix) = AUTOENCODERS.iter().find(has) else { return Ok(None) };
    let (sample_size, published) = match class {
        class if class.contains("XL") => (1024, 0.13025),
        "PixArtSigmaPipeline" => (1024, 0.13025),
        "PixArtAlphaPipeline" | "LattePipeline" | "OpenSoraPipeline" => (512, 0.18215),
        class if class.contains("StableDiffusion") => (512, 0.18215),
        "DiTPipeline" | "LatteClassPipeline" => (256, 0.18215),
        "HunyuanDiTPipeline" => (1024, 0.13025),
        _ => (256, 1.0),
    };
    let scaling_factor = pipeline::scale_factor(tensors)?.unwrap_or(published);
    let net = Network { tensors, prefix, component: "vae" };
    let vae = taming::read_autoencoder(net, taming::Untold { sample_size, scaling_factor })?;
    Ok(Some(pipeline::first_stage_at(&vae, prefix)))
}

/// The text encoders among `tensors` that Stable Diffusion or, if `xl`, SDXL reads.
///
/// # Errors
/// As [`autoencoder`].
pub fn text_encoders(tensors: &dyn Tensors, xl: bool) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    let has = |key: String| tensors.shape(&key).is_some();
    let table = "embeddings.token_embedding.weight";
    let transformers = |p: &&&str| has(format!("{p}{table}")) || has(format!("{p}text_model.{table}"));
    if let Some(prefix) = TRANSFORMERS.iter().find(transformers) {
        let net = Network { tensors, prefix, component: "text_encoder" };
        let (encoder, whole_prefix) = openclip::read_transformers(net)?;
        let projection = tensors.shape(PROJECTION).filter(|_| xl && prefix.is_empty()).and_then(<[usize]>::first);
        match projection {
            Some(&features) => {
                let encoder = TextEncoder { projection: Some(features), activation: "gelu", ..encoder };
                let entries = openclip::transformers_entries(&encoder, &whole_prefix);
                members.push(text_encoder("text_encoder_2", &encoder, entries));
            }
            None => {
                let entries = openclip::transformers_entries(&encoder, &whole_prefix);
                members.push(text_encoder("text_encoder", &encoder, entries));
            }
        }
    }
    let openclip = |p: &&&str| has(format!("{p}token_embedding.weight")) && has(format!("{p}text_projection"));
    if let Some(prefix) = OPENCLIPS.iter().find(openclip).filter(|_| xl) {
        let encoder = openclip::read_openclip(Network { tensors, prefix, component: "text_encoder_2" })?;
        members.push(openclip_member(&encoder, prefix));
    }
    Ok(members)
}
