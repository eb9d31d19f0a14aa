//! Options of a request, as the command line spells them.

use aquatint::image::{Picture, ResizeMode};
use aquatint::options::{InitOptions, PromptOptions, RequestOptions, SamplingOptions, Sigmas, SizeOptions, Tensors};
use aquatint::pipeline::NoiseSource;
use aquatint::sampler::{Spacing, Variance};
use aquatint::{Error, Result};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// The keyword of the text in a PNG that tells how it was made.
pub const TEXT: &str = "parameters";

/// What the images show.
#[derive(Args, Clone)]
pub struct PromptArgs {
    /// Prompt; for class models, a class name or number. Repeat for more images
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Negative prompt: one for all images, or one per prompt
    #[arg(short, long, alias = "negative-prompt", alias = "negative_prompt", value_name = "TEXT")]
    pub negative: Vec<String>,
    /// Take prompts literally: no (weights:1.3), no BREAK, and nothing beyond what the text encoder reads at once
    #[arg(long)]
    pub plain_prompt: bool,
    /// Classes by number or name, separated by commas; one image each. Names may hold commas themselves
    #[arg(long, alias = "cls_id", value_name = "LIST")]
    pub class_labels: Vec<String>,
    /// Refuse prompts with parts that other programs act on and this one reads as words, such as <lora:name:1>
    #[arg(long)]
    pub strict: bool,
}

impl PromptArgs {
    /// As the library takes them.
    pub fn options(&self) -> PromptOptions {
        PromptOptions {
            prompts: self.prompt.clone(),
            negatives: self.negative.clone(),
            plain: self.plain_prompt,
            class_labels: self.class_labels.clone(),
            ..PromptOptions::default()
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SigmasArg {
    /// Those of the timesteps
    Normal,
    /// After Karras et al. 2022
    Karras,
    /// Evenly spaced logarithms
    Exponential,
    /// After the beta distribution of (0.6, 0.6)
    Beta,
    /// Evenly spaced lambdas, as Lu et al. 2022 have them (dpm++2m, dpm++3m and their sde)
    Lu,
}

/// Steps, guidance and sampler; what is not given is as the model was saved.
#[derive(Args, Clone)]
pub struct SamplingArgs {
    /// Sampler steps [default: the model's]
    #[arg(short, short_alias = 'c', long, aliases = ["num-inference-steps", "timesteps", "ddim_steps", "custom_steps"], value_name = "N")]
    pub steps: Option<usize>,
    /// Guidance scale; 1 or less turns guidance off [default: the model's]
    #[arg(short = 'g', long, aliases = ["guidance-scale", "scale"], value_name = "SCALE")]
    pub cfg_scale: Option<f32>,
    /// ddim, ddpm, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-sde, dpm++3m, dpm++3m-sde, dpm++2s, lms, unipc, lcm, tcd,
    /// deis, dpm2, dpm2-a, dpm++sde or iddpm (ddpm with learned variance); -karras behind a name spreads noise levels so; titles
    /// such as "DPM++ 2M Karras" do too [default: the one the model was saved with]
    #[arg(long, alias = "sampling-method", value_name = "NAME")]
    sampler: Option<String>,
    /// The sampler pndm, by the name that CompVis' scripts have for it
    #[arg(long, hide = true, conflicts_with = "sampler")]
    plms: bool,
    /// ddim, tcd: noise added at each step, from 0, none, to 1, as much as ddpm
    #[arg(long, short_alias = 'e', aliases = ["ddim-eta", "ddim_eta"], value_name = "ETA")]
    eta: Option<f32>,
    /// How timesteps are spread: leading, linspace or trailing, with ddim also uniform or quad
    #[arg(long, aliases = ["timestep_spacing", "skip_type", "skip-type"], value_name = "NAME")]
    timestep_spacing: Option<Spacing>,
    /// How noise levels are spread (dpm++, dpm2, euler, heun, lms, unipc, deis)
    #[arg(long, value_enum, value_name = "NAME")]
    sigmas: Option<SigmasArg>,
    /// ddpm: noise of each step, fixed_small, fixed_large or learned_range
    #[arg(long, alias = "variance-type", value_name = "NAME")]
    variance: Option<Variance>,
    /// Keep predicted clean latents within -1 to 1 (ddim, ddpm, heun, lcm)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    clip_sample: Option<bool>,
    /// How much of the contrast that guidance adds is taken back, 0 to 1 (0.7 is common) [default: 0]
    #[arg(long, alias = "guidance_rescale", value_name = "PHI")]
    guidance_rescale: Option<f32>,
}

impl SamplingArgs {
    /// As the library takes them.
    pub fn options(&self) -> SamplingOptions {
        let sigmas = |sigmas| match sigmas {
            SigmasArg::Normal => Sigmas::Normal,
            SigmasArg::Karras => Sigmas::Karras,
            SigmasArg::Exponential => Sigmas::Exponential,
            SigmasArg::Beta => Sigmas::Beta,
            SigmasArg::Lu => Sigmas::Lu,
        };
        SamplingOptions {
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            guidance_rescale: self.guidance_rescale,
            sampler: self.sampler.clone().or_else(|| self.plms.then(|| "pndm".into())),
            eta: self.eta,
            timestep_spacing: self.timestep_spacing,
            sigmas: self.sigmas.map(sigmas),
            variance: self.variance,
            clip_sample: self.clip_sample,
            ..SamplingOptions::default()
        }
    }
}

/// The size of the images.
#[derive(Args, Clone)]
pub struct SizeArgs {
    /// Width in pixels [default: the model's]
    #[arg(short = 'W', long, value_name = "PIXELS")]
    width: Option<usize>,
    /// Height in pixels [default: the model's]
    #[arg(short = 'H', long, value_name = "PIXELS")]
    height: Option<usize>,
    /// Width and height in pixels
    #[arg(long, alias = "res", value_name = "PIXELS", conflicts_with_all = ["width", "height"])]
    size: Option<usize>,
    /// Make images in the nearest size that the model was made for, by its ratio, then resize and crop them to the size asked for,
    /// which may be any (models with a list of sizes, as PixArt has)
    #[arg(long, aliases = ["use-resolution-binning", "use_resolution_binning"])]
    resolution_binning: bool,
}

impl SizeArgs {
    /// As the library takes them.
    pub fn options(&self) -> SizeOptions {
        SizeOptions {
            width: self.width.or(self.size),
            height: self.height.or(self.size),
            binning: self.resolution_binning,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ResizeArg {
    /// Proportions change ("Just resize")
    #[value(alias = "default")]
    Stretch,
    /// What hangs over is cut off ("Crop and resize")
    Crop,
    /// The outermost pixels are continued ("Resize and fill")
    #[value(alias = "fill")]
    Pad,
}

/// Where a run begins, and when the refiner takes over.
#[derive(Args, Clone)]
pub struct InitArgs {
    /// Begin with this image (PNG, JPEG, WebP or BMP); without a size, the result has its size, rounded down to what the
    /// model can make
    #[arg(long, alias = "init-img", alias = "init_image", value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// Make only the white part of this image anew
    #[arg(long, requires = "init_image", value_name = "FILE")]
    pub mask: Option<PathBuf>,
    /// What becomes of an image, and its mask, in other proportions than the result's [default: stretch]
    #[arg(long, alias = "resize_mode", requires = "init_image", value_enum, value_name = "MODE")]
    resize_mode: Option<ResizeArg>,
    /// How far the result may stray from the image, 0 to 1 [default: 0.75]
    #[arg(long, requires = "init_image", value_name = "SHARE")]
    strength: Option<f64>,
    /// Fraction of the run after which the refiner takes over (1: never). For files with a refiner [default: 0.8]
    #[arg(long, alias = "high-noise-frac", value_name = "SHARE")]
    pub refiner_start: Option<f64>,
}

impl InitArgs {
    /// The files that are read.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.init_image.iter().chain(&self.mask)
    }

    /// As the library takes them; reads the files.
    pub fn options(&self) -> Result<Option<InitOptions>> {
        let Some(path) = &self.init_image else { return Ok(None) };
        let image = Picture::read(path)?;
        let mask = self.mask.as_ref().map(|path| Picture::read(path)).transpose()?;
        let resize = self.resize_mode.map(|mode| match mode {
            ResizeArg::Stretch => ResizeMode::Stretch,
            ResizeArg::Crop => ResizeMode::Crop,
            ResizeArg::Pad => ResizeMode::Pad,
        });
        Ok(Some(InitOptions { image, mask, resize, strength: self.strength }))
    }
}

/// How many images.
#[derive(Args, Clone)]
pub struct CountArgs {
    /// Images per prompt or class [default: 1]
    #[arg(long, alias = "n_imgs", value_name = "N")]
    pub n_imgs: Option<usize>,
}

/// Where noise comes from.
#[derive(Clone, Copy, ValueEnum)]
pub enum Rng {
    /// One stream per image: image k is the same alone or in a batch
    Fast,
    /// torch's CPU generator, as diffusers' pipelines use it
    Torch,
}

impl Rng {
    /// As the library takes it.
    pub fn source(self) -> NoiseSource {
        match self {
            Rng::Fast => NoiseSource::Fast,
            Rng::Torch => NoiseSource::Torch,
        }
    }
}

/// What images are asked to be, but for their number and their noise.
#[derive(Args, Clone)]
pub struct RequestArgs {
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    size: SizeArgs,
    /// Frames of each video, of models that make videos [default: as many as the model was made for]
    #[arg(long, value_name = "F", aliases = ["num-frames", "video-length", "video_length", "num_frames"])]
    frames: Option<usize>,
    #[command(flatten)]
    pub init: InitArgs,
    /// Images per pass through the network [default: all, at most 8]
    #[arg(short, long, value_name = "N")]
    batch_size: Option<usize>,
    /// Most memory beside the weights, such as 2G or 800M: batches get smaller and images are decoded in tiles [default:
    /// as much as whole batches need, and 1.5G for decoding]
    #[arg(long, value_name = "BYTES", value_parser = aquatint::options::parse_bytes)]
    max_memory: Option<usize>,
    /// Decode tiles of N x N latents
    #[arg(long, value_name = "N")]
    vae_tile: Option<usize>,
}

impl RequestArgs {
    /// As the library takes them; reads the initial image.
    pub fn options(&self) -> Result<RequestOptions> {
        Ok(RequestOptions {
            prompts: self.prompts.options(),
            sampling: self.sampling.options(),
            size: self.size.options(),
            frames: self.frames,
            init: self.init.options()?,
            refiner_start: self.init.refiner_start,
            batch_size: self.batch_size,
            max_memory: self.max_memory,
            vae_tile: self.vae_tile,
            strict: self.prompts.strict,
            ..RequestOptions::default()
        })
    }
}

/// Reads `--inputs`.
pub fn read_tensors(path: &Path) -> Result<Tensors> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Tensors::new(path.display().to_string(), &bytes)
}
