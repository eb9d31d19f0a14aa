//! `aquatint verify`.

use super::{model, say, say_json};
use aquatint::Result;
use aquatint::model::Model;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Check every byte of a file.
#[derive(Args)]
pub struct Verify {
    /// A packed model [default: the embedded one]
    model: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let packed = model::open(self.model.as_deref())?;
        Model::verify(&packed).map_err(|e| match &self.model {
            Some(path) => model::named(e, path),
            None => e,
        })?;
        let (hash, bytes) = (format!("{:032x}", packed.hash()), packed.as_bytes().len());
        if self.json {
            say_json(&json!({ "sound": true, "hash": hash, "bytes": bytes }));
        } else {
            say(format_args!("{}: sound, {}, hash {hash}", model::name(self.model.as_deref()), super::bytes(bytes)));
        }
        Ok(())
    }
}
