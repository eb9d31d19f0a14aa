//! How a server is set up.

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What clients must show, as `Bearer` or as the password of `Basic`; none lets everybody in.
    pub token: Option<String>,
    /// Names that the `Host` of a request may have beside the loopback's and the address that is listened at.
    pub hosts: Vec<String>,
    /// Origins of web pages, such as `https://chat.example`, that may send requests and read answers beside the server's own.
    pub origins: Vec<String>,
    /// What a request may ask for.
    pub limits: Limits,
}

/// What a request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body: usize,
    /// Bytes of a prompt.
    pub prompt: usize,
    /// Pixels of a side of a picture.
    pub side: usize,
    /// Sampler steps.
    pub steps: usize,
    /// Pictures of a request.
    pub images: usize,
    /// Pixels of a picture that a request begins with.
    pub pixels: u64,
    /// Bytes of working memory of a job.
    pub memory: usize,
    /// Jobs that wait.
    pub queue: usize,
    /// Connections at a time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body: 32 << 20,
            prompt: 32 << 10,
            side: 2048,
            steps: 150,
            images: 64,
            pixels: 64 << 20,
            memory: usize::MAX,
            queue: 64,
            connections: 128,
        }
    }
}

/// Memory of this machine, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it.
    pub total: usize,
    /// What is free, or can be freed.
    pub available: usize,
}

impl Memory {
    /// As it is now; none where the system does not tell.
    pub fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let of = |name: &str| -> Option<usize> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
        };
        Some(Memory { total: of("MemTotal:")?, available: of("MemAvailable:")? })
    }
}
