//! `aquatint encode`: prompts to features.

use super::device::with_backend;
use super::options::{CountArgs, PromptArgs};
use super::tensors::write;
use super::{Device, model, say};
use aquatint::error::one_line;
use aquatint::model::Model;
use aquatint::options::NamedTensor;
use aquatint::pipeline::{Prompts, Session};
use aquatint::raw::whole_file::check_target;
use aquatint::{Error, Result};
use clap::Args;
use std::path::{Path, PathBuf};

/// Run the text encoders once, and write what `run --inputs` reads in place of prompts.
///
/// A run with them makes the same picture as one with the prompts, also from a file without text encoders, and on another
/// machine.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Encode {
    /// A packed model that reads prompts
    model: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    count: CountArgs,
    /// safetensors to write: prompt_embeds [n,tokens,features], prompt_mask [n,tokens], those of a second encoder with _2
    /// where it reads other lengths, pooled [n,features], and negative_ ones
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    device: Device,
}

impl Encode {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let choice = self.device.choice()?;
        let packed = model::open(Some(&self.model))?;
        let model = Model::new(&packed)?;
        check_target(&self.output, &[Path::new(&self.model)])?;
        let mut options = self.prompts.options();
        options.n_imgs = self.count.n_imgs;
        if let Some(warning) = options.warnings().into_iter().next().filter(|_| self.prompts.strict) {
            return Err(Error::request("prompt", "nothing that this program does not do", warning));
        }
        let Prompts::Texts(texts) = options.prompts(&model, None, true)? else {
            return Err(Error::request("model", "one that reads prompts", "one that does not"));
        };
        let (embeddings, cut) = self.device.install(
            || with_backend!(choice, packed, backend => Session::new(&model, &backend).encode(&texts, true)),
        )??;
        let warnings = options.warnings();
        let cut = cut.iter().map(|cut| format!("the prompt is longer than the text encoder reads; cut off: {cut:?}"));
        for warning in warnings.into_iter().chain(cut).filter(|_| !self.quiet) {
            eprintln!("warning: {}", one_line(&warning));
        }
        let tensors = NamedTensor::of_prompts(&Prompts::Embeddings(embeddings));
        write(&self.output, &tensors)?;
        if !self.quiet {
            let shown = tensors.iter().map(|tensor| format!("{} {:?}", tensor.name, tensor.dims));
            say(format_args!("{}: {}", self.output.display(), shown.collect::<Vec<_>>().join(", ")));
        }
        Ok(())
    }
}
