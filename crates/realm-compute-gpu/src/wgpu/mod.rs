//! wgpu's adapters: what Vulkan, Metal and DX12 drivers offer.

use std::{
    future::Future,
    panic,
    pin::pin,
    task::{Context, Poll, Waker},
};

use ::wgpu::{
    Adapter, AdapterInfo, Backend, Backends, CooperativeMatrixProperties, CooperativeScalarType,
    DeviceType, Features, Instance, InstanceDescriptor, InstanceFlags, Limits,
};

use crate::{GpuDevice, Reason, text::size};

/// The APIs for which kernels are to be written. OpenGL is left out: its compute shaders lack too
/// much.
const APIS: Backends = Backends::VULKAN.union(Backends::METAL).union(Backends::DX12);

pub(crate) fn devices() -> Result<Vec<GpuDevice>, Reason> {
    let apis = APIS.intersection(Instance::enabled_backend_features());
    // `Instance::new` panics on a platform that has none of them.
    let mut found = if apis.is_empty() { Vec::new() } else { facts(apis)? };
    if found.is_empty() {
        return Err(Reason::NoAdapter { apis: any_of(apis) });
    }
    found.sort_by_key(|facts| rank(facts.info.device_type));
    Ok(found.iter().enumerate().map(|(index, facts)| facts.device(index)).collect())
}

/// What the adapters say of themselves.
fn facts(apis: Backends) -> Result<Vec<Facts>, Reason> {
    let list = || {
        let instance = Instance::new(InstanceDescriptor {
            backends: apis,
            // No validation layers: a look for devices gives them nothing to check.
            flags: InstanceFlags::empty(),
            ..InstanceDescriptor::new_without_display_handle()
        });
        let adapters = ready(instance.enumerate_adapters(apis))?;
        Some(adapters.iter().map(Facts::of).collect())
    };
    let failed =
        |cause: &str| Reason::Failed { call: "wgpu's list of adapters", cause: cause.to_owned() };
    // wgpu takes some errors of a broken driver for impossible and panics.
    match panic::catch_unwind(list) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(failed("it did not come at once")),
        Err(_) => Err(failed("a driver misbehaved; see the message above, update the driver")),
    }
}

/// The value of a future that waits for nothing. Outside browsers all of wgpu's futures but a
/// buffer's mapping are of this kind: the work is done by the time they are returned.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// All that a description needs of an adapter, which closes with its instance.
struct Facts {
    info: AdapterInfo,
    features: Features,
    limits: Limits,
    matrices: Vec<CooperativeMatrixProperties>,
}

impl Facts {
    fn of(adapter: &Adapter) -> Self {
        Self {
            info: adapter.get_info(),
            features: adapter.features(),
            limits: adapter.limits(),
            matrices: adapter.cooperative_matrix_properties(),
        }
    }

    fn device(&self, index: usize) -> GpuDevice {
        GpuDevice {
            name: format!("wgpu:{index}"),
            description: self.describe(),
            memory: None,
            software: self.info.device_type == DeviceType::Cpu,
            usable: Err(Reason::NoKernels { backend: "wgpu" }),
        }
    }

    fn describe(&self) -> String {
        let info = &self.info;
        let mut parts = vec![
            info.name.clone(),
            kind(info.device_type).to_owned(),
            api(info.backend).to_owned(),
            if self.features.contains(Features::SHADER_F16) { "f16" } else { "no f16" }.to_owned(),
            self.subgroups(),
            self.cooperative_matrix(),
            format!("buffers to {}", size(self.limits.max_buffer_size)),
            format!("bindings to {}", size(self.limits.max_storage_buffer_binding_size)),
        ];
        let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
        if !driver.trim().is_empty() {
            parts.push(format!("driver {}", driver.trim()));
        }
        // Drivers choose these words: keep them to one line.
        parts.join(", ").replace(char::is_control, " ")
    }

    fn subgroups(&self) -> String {
        let (least, most) = (self.info.subgroup_min_size, self.info.subgroup_max_size);
        if !self.features.contains(Features::SUBGROUP) {
            "no subgroups".to_owned()
        } else if least == most {
            format!("subgroups of {least}")
        } else {
            format!("subgroups of {least} to {most}")
        }
    }

    /// The sizes as `MxNxK` with the types of inputs and result, each once.
    fn cooperative_matrix(&self) -> String {
        if !self.features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            return "no cooperative matrix".to_owned();
        }
        let mut shapes: Vec<String> = Vec::new();
        for it in &self.matrices {
            let (from, to) = (scalar(it.ab_type), scalar(it.cr_type));
            let shape = format!("{}x{}x{} {from} to {to}", it.m_size, it.n_size, it.k_size);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        format!("cooperative matrix {}", shapes.join(" | ")).trim_end().to_owned()
    }
}

/// The order in which adapters are numbered.
fn rank(device_type: DeviceType) -> u8 {
    match device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

fn kind(device_type: DeviceType) -> &'static str {
    match device_type {
        DeviceType::DiscreteGpu => "discrete GPU",
        DeviceType::IntegratedGpu => "integrated GPU",
        DeviceType::VirtualGpu => "virtual GPU",
        DeviceType::Other => "device of unknown kind",
        DeviceType::Cpu => "software adapter (computes on the CPU)",
    }
}

fn api(backend: Backend) -> &'static str {
    match backend {
        Backend::Vulkan => "Vulkan",
        Backend::Metal => "Metal",
        Backend::Dx12 => "DX12",
        other => other.to_str(),
    }
}

fn scalar(scalar: CooperativeScalarType) -> &'static str {
    match scalar {
        CooperativeScalarType::F32 => "f32",
        CooperativeScalarType::F16 => "f16",
        CooperativeScalarType::I32 => "i32",
        CooperativeScalarType::U32 => "u32",
    }
}

/// The APIs as a list for people: `Vulkan, Metal or DX12`.
fn any_of(apis: Backends) -> String {
    let names: Vec<&str> = [Backend::Vulkan, Backend::Metal, Backend::Dx12]
        .into_iter()
        .filter(|&backend| apis.contains(Backends::from(backend)))
        .map(api)
        .collect();
    match names.as_slice() {
        [] => "Vulkan, Metal or DX12".to_owned(),
        [only] => (*only).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests;
