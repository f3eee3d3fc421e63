//! What the machine is: the processor's name and the memory that is free.

use std::fs;

/// The processor's own name, where it tells.
pub(crate) fn processor() -> String {
    brand().filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.into())
}

#[cfg(target_arch = "x86_64")]
fn brand() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    if __cpuid(0x8000_0000).eax < 0x8000_0004 {
        return None;
    }
    let leaves = (0x8000_0002..=0x8000_0004).map(__cpuid);
    let words = leaves.flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
    let words = String::from_utf8_lossy(&bytes);
    Some(words.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    None
}

/// Bytes that programs may still take: what the system has available, or less where a control group
/// limits us. `None` where the system does not tell.
pub(crate) fn available_memory() -> Option<u64> {
    let system = meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(control_group().map_or(system, |group| group.min(system)))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What our control group (version 2) leaves. Cached file pages count as used there, though the system
/// takes them back when they are needed.
fn control_group() -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    let stat = fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix("file ")?.trim().parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_available_line() {
        assert_eq!(meminfo("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(meminfo("MemTotal: 9 kB\n"), None);
        assert_eq!(meminfo("MemAvailable: lots\n"), None);
    }
}
