//! `aquatint sample`.

use super::clock::bar;
use super::device::with_backend;
use super::options::{RequestArgs, Rng};
use super::{Device, model, say, say_json};
use aquatint::error::one_line;
use aquatint::model::Model;
use aquatint::options::read_prompts;
use aquatint::pipeline::Session;
use aquatint::raw::backend::Backend;
use aquatint::samples::{Event, Kept, MadeShard, SampleJob, SampleOptions, make};
use aquatint::shard::Shard;
use aquatint::{Error, Result};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Clone, Copy, ValueEnum)]
enum KeptArg {
    /// Pictures
    Images,
    /// Final latents; nothing is decoded
    Latents,
    /// Both
    Both,
}

/// Make a part of many images, for several machines.
///
/// Image i is the same whatever the number of shards and the batch size: its seed is the first one plus i, and it shows
/// prompt or class i modulo their number. The same command goes on after a kill; a shard that is done stays as it is. `merge`
/// puts shards together.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Sample {
    /// A packed model [default: the small model of letters inside this program]
    model: Option<PathBuf>,
    /// Images of all shards together [default: one per prompt or class; all classes if none is named]
    #[arg(long, alias = "n_imgs", value_name = "N")]
    n_imgs: Option<usize>,
    /// A file with a prompt or class per line, in place of --prompt
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "class_labels"])]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    request: RequestArgs,
    /// Seed of the first image; image i has that of K + i [default: 42]
    #[arg(long, value_name = "K")]
    seed: Option<u64>,
    /// Where the noise comes from; torch: one generator per image, as diffusers takes a list of them [default: fast]
    #[arg(long, value_enum)]
    rng: Option<Rng>,
    /// Replace prompts: safetensors with prompt_embeds [n,tokens,features] or class_labels [n], and what belongs to them, as
    /// `encode` writes them
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    inputs: Option<PathBuf>,
    /// What is kept of each image
    #[arg(long, value_enum, value_name = "WHAT", default_value = "images")]
    keep: KeptArg,
    /// Make shard K of N, K from 0 [default: what SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX says, else 0/1]
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    /// The number of shards, where the scheduler says only which one it is; AQUATINT_SHARDS may have it, too
    #[arg(long, value_name = "N", conflicts_with = "shard")]
    shards: Option<usize>,
    /// The folder of all shards; made if it is not there
    #[arg(short, long, alias = "outdir", value_name = "DIR")]
    output: PathBuf,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    device: Device,
}

impl Sample {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let begin = Instant::now();
        let choice = self.device.choice()?;
        let packed = model::open(self.model.as_deref())?;
        let model = Model::new(&packed)?;
        let shard = self.shard()?;
        let options = self.options()?;
        let inputs = self.inputs.as_deref().map(|path| fs::read(path).map_err(Error::io("read", path))).transpose()?;
        let source = self.inputs.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        options.request.warnings().iter().for_each(|warning| self.tell("warning", warning));
        let name = model::name(self.model.as_deref());
        let bar = bar(self.quiet || self.json);
        bar.set_prefix("images");
        let (job, made, device) = self.device.install(|| {
            with_backend!(choice, packed, backend => {
                let mut session = Session::new(&model, &backend);
                let job = SampleJob::new(&session, &options, inputs.as_deref().map(|bytes| (&source[..], bytes)), &name)?;
                let made = make(&mut session, &job, shard, &self.output, &mut |event| match event {
                    Event::Resumed(images) => {
                        bar.suspend(|| self.tell("note", &format!("{images} images were there; going on with the others")));
                    }
                    Event::Cut(cut) => bar.suspend(|| {
                        let what = format!("a prompt is longer than the text encoder reads at once; cut off: {cut:?}");
                        self.tell("warning", &what);
                    }),
                    Event::Done(done, total) => {
                        bar.set_length(total as u64);
                        bar.set_position(done as u64);
                    }
                    _ => {}
                })?;
                Ok::<_, Error>((job, made, backend.name()))
            })
        })??;
        bar.finish_and_clear();
        self.report(&job, shard, &made, &device, begin.elapsed().as_secs_f64())
    }

    /// The shard to make; says so where the environment decides it.
    fn shard(&self) -> Result<Shard> {
        if let Some(shard) = self.shard {
            return Ok(shard);
        }
        let variable = |name: &str| std::env::var(name).ok();
        let Some((shard, by)) = Shard::of_environment(&variable, self.shards)? else { return Ok(Shard::WHOLE) };
        self.tell("note", &format!("shard {shard}, as {by} says"));
        Ok(shard)
    }

    /// The options as the library takes them; reads prompts and the initial image.
    fn options(&self) -> Result<SampleOptions> {
        let mut request = self.request.options()?;
        if let Some(path) = &self.prompts {
            request.prompts.prompts = read_prompts(path)?;
        }
        (request.seed, request.noise) = (self.seed, self.rng.map(Rng::source));
        let kept = match self.keep {
            KeptArg::Images => Kept::Images,
            KeptArg::Latents => Kept::Latents,
            KeptArg::Both => Kept::Both,
        };
        Ok(SampleOptions { request, images: self.n_imgs, kept })
    }

    fn tell(&self, kind: &str, what: &str) {
        if !self.quiet {
            eprintln!("{kind}: {}", one_line(what));
        }
    }

    /// Says what was done.
    fn report(&self, job: &SampleJob, shard: Shard, made: &MadeShard, device: &str, seconds: f64) -> Result<()> {
        let (first, end) = (made.images.start, made.images.end);
        if self.json {
            say_json(&json!({
                "file": made.path,
                "shard": [shard.index, shard.of],
                "images": [first, end],
                "of": job.images(),
                "job": job.id()?,
                "device": device,
                "already": made.already,
                "seconds": seconds,
            }));
        } else if !self.quiet {
            let done = if made.already { "was done before".into() } else { format!("{seconds:.2} s") };
            let (path, of) = (made.path.display(), job.images());
            say(format_args!("shard {shard}, images {first} to before {end} of {of}: {done}: {path}"));
        }
        Ok(())
    }
}
