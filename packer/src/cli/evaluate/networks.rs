//! The networks that look at pictures, from the files that users have of them.

use crate::error::Result;
use crate::source::tokenizer::{self, TokenizerFile};
use crate::source::{Checkpoint, open_checkpoint, read_json};
use aquatint::Error;
use aquatint::raw::text::Tokenizer;
use aquatint_evaluation::network::{Clip, ClipConfig, Inception, Lpips, Resize, Weights};
use aquatint_evaluation::score::Texts;
use aquatint_evaluation::{Captions, Scorer};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Arguments that name networks.
#[derive(Debug, Args)]
pub(super) struct Networks {
    /// Weights of the Inception of 2015-12-05, with which FID, KID and the Inception score are published: as pytorch-fid and
    /// torch-fidelity have them (pt_inception-2015-12-05-6726825d.pth), or in safetensors by the same names.
    #[arg(long, value_name = "FILE")]
    inception: Option<PathBuf>,
    /// How pictures are brought to Inception's size: as TensorFlow 1 and torch-fidelity do it, or as clean-fid does.
    #[arg(long, value_enum, default_value = "tensorflow", requires = "inception", value_name = "RULE")]
    resize: ResizeRule,
    /// Weights of torchvision's AlexNet or VGG-16, for LPIPS (alexnet-owt-7be5be79.pth, vgg16-397923af.pth).
    #[arg(long, value_name = "FILE")]
    lpips: Option<PathBuf>,
    /// LPIPS' weights of their channels, which the package lpips ships (weights/v0.1/alex.pth or vgg.pth) [default: in the file of
    /// --lpips]
    #[arg(long, alias = "lpips_lin", requires = "lpips", value_name = "FILE")]
    lpips_lin: Option<PathBuf>,
    /// Directory of a CLIP of transformers, with its tokenizer, which tells how well pictures fit --prompts.
    #[arg(long, requires = "prompts", value_name = "DIR")]
    clip: Option<PathBuf>,
}

/// How pictures are brought to Inception's size.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ResizeRule {
    /// As TensorFlow 1 and torch-fidelity do it.
    Tensorflow,
    /// As clean-fid does.
    Clean,
}

impl Networks {
    /// Whether one makes features of pictures.
    pub(super) fn makes_features(&self) -> bool {
        self.inception.is_some()
    }

    /// Whether one reads captions.
    pub(super) fn reads_captions(&self) -> bool {
        self.clip.is_some()
    }

    /// The files and folders.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let paths = [&self.inception, &self.lpips, &self.lpips_lin, &self.clip];
        paths.into_iter().flatten().map(PathBuf::as_path)
    }

    /// Adds them to `scorer`; without those that are for scores alone unless there are `scores`.
    pub(super) fn add_to(&self, scorer: &mut Scorer, captions: Option<&Captions>, scores: bool) -> Result<()> {
        if let Some(path) = self.inception.as_deref().filter(|_| scores) {
            let resize = match self.resize {
                ResizeRule::Tensorflow => Resize::Tensorflow,
                ResizeRule::Clean => Resize::Clean,
            };
            scorer.inception = Some(Inception::new(&open_checkpoint(path, &mut Vec::new())?, resize)?);
        }
        if let Some(path) = &self.lpips {
            scorer.lpips = Some(self.lpips(path)?);
        }
        if let Some((dir, captions)) = self.clip.as_deref().zip(captions).filter(|_| scores) {
            scorer.clip = Some(clip(dir, captions)?);
        }
        Ok(())
    }

    fn lpips(&self, path: &Path) -> Result<Lpips> {
        let trunk = open_checkpoint(path, &mut Vec::new())?;
        let lin = self.lpips_lin.as_ref().map(|path| open_checkpoint(path, &mut Vec::new())).transpose()?;
        let lin = lin.as_ref().unwrap_or(&trunk);
        if !lin.has("lin0.model.1.weight") {
            let expected =
                "LPIPS' weights of channels (lin0.model.1.weight), as the package lpips ships them (--lpips-lin)";
            return Err(Error::request(lin.component(), expected, "none").into());
        }
        Ok(Lpips::new(&trunk, lin)?)
    }
}

impl Weights for Checkpoint {
    fn has(&self, name: &str) -> bool {
        Checkpoint::has(self, name)
    }

    fn shaped(&self, name: &str, dims: &[usize]) -> aquatint::Result<Vec<f32>> {
        let wrong = |got: String| Error::request(self.describe(name), format!("shape {dims:?}"), got);
        match self.shape(name) {
            Some(shape) if shape == dims => self.read(name),
            Some(shape) => Err(wrong(format!("shape {shape:?}"))),
            None => Err(wrong(self.object(name).unwrap_or("no such tensor").to_owned())),
        }
    }
}

/// The CLIP in `dir`, with what its towers make of `captions`.
fn clip(dir: &Path, captions: &Captions) -> Result<Texts> {
    let dir = dir.canonicalize().map_err(Error::io("read", dir))?;
    let (root, name) = (dir.parent(), dir.file_name().and_then(|name| name.to_str()));
    let Some((root, name)) = root.zip(name) else {
        return Err(Error::request("clip", "a directory with a name in UTF-8", dir.display()).into());
    };
    let mut sources = Vec::new();
    let config: ClipConfig = read_json(root, &format!("{name}/config.json"), &mut sources)?;
    let clip = Clip::new(&config, &Checkpoint::open(root, name, &mut sources)?)?;
    let TokenizerFile { json, begin, end, .. } = tokenizer::read(root, name, &mut sources)?;
    let tokenizer = Tokenizer::new(&json)?;
    let most = clip.most_tokens();
    let tokens = |text: &str| -> aquatint::Result<Vec<u32>> {
        let mut tokens: Vec<u32> = begin.into_iter().collect();
        tokens.extend(tokenizer.tokens(text)?.iter().map(|token| token.id));
        // As CLIP's processor cuts texts off.
        tokens.truncate(most.saturating_sub(1));
        tokens.push(end);
        Ok(tokens)
    };
    Ok(Texts::new(clip, captions, tokens)?)
}
