//! What the assembler says of each kernel (`ptxas -v`): registers, spills, shared memory, lost speed.

use std::fmt;

/// One kernel on one architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) kernel: String,
    /// `sm_90a`.
    pub(crate) arch: String,
    /// Registers a thread.
    pub(crate) registers: u32,
    /// Bytes of registers that did not fit and go through local memory, stores and loads.
    pub(crate) spills: u32,
    /// Bytes a thread of local memory, spills among them.
    pub(crate) stack: u32,
    /// Bytes of static shared memory.
    pub(crate) shared: u32,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, arch, registers, spills, stack, shared } = self;
        write!(
            f,
            "{kernel:<40} {arch:<8} {registers:>4} registers {spills:>5} B spilled {stack:>5} B \
             stack {shared:>6} B shared"
        )
    }
}

/// The kernels of a log of `ptxas -v`, in its order. Functions that are no kernels are left out.
pub(crate) fn parse(log: &str) -> Vec<Usage> {
    let mut kernels: Vec<Usage> = Vec::new();
    // Whether the lines are about the last kernel, not about a function that it calls.
    let mut inside = false;
    for line in log.lines() {
        if let Some((_, names)) = line.split_once("Compiling entry function '") {
            let mut quoted = names.split('\'');
            let (kernel, arch) = (quoted.next(), quoted.nth(1));
            let [kernel, arch] = [kernel, arch].map(|name| name.unwrap_or_default().to_owned());
            kernels.push(Usage { kernel, arch, ..Usage::default() });
            continue;
        }
        let Some(last) = kernels.last_mut() else { continue };
        if let Some((_, name)) = line.split_once("Function properties for ") {
            inside = name.trim() == last.kernel;
        } else if line.contains("bytes spill stores") && inside {
            last.stack = before(line, " bytes stack frame");
            last.spills = before(line, " bytes spill stores") + before(line, " bytes spill loads");
        } else if line.contains(" registers") && line.contains(": Used ") {
            last.registers = before(line, " registers");
            last.shared = before(line, " bytes smem");
        }
    }
    kernels
}

/// What the assembler says that it could not do for speed: wgmma instructions that it made wait for each
/// other or for waits of its own, setmaxnreg that it left out. Once each, in order.
pub(crate) fn losses(log: &str) -> Vec<String> {
    let mut losses: Vec<String> = Vec::new();
    for line in log.lines() {
        let loss = match line.split_once("Potential Performance Loss: ") {
            Some((_, loss)) => loss.trim(),
            None if line.contains("warpgroup.wait is injected") => {
                line.trim_start_matches("ptxas info").trim_start_matches([' ', ':']).trim()
            }
            None => continue,
        };
        if !losses.iter().any(|other| other == loss) {
            losses.push(loss.to_owned());
        }
    }
    losses
}

/// The number in front of `what`; 0 where there is none.
fn before(line: &str, what: &str) -> u32 {
    let number = line.find(what).and_then(|end| line[..end].rsplit([' ', '\t']).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
