use super::*;

fn software() -> Facts {
    Facts {
        info: AdapterInfo {
            name: "llvmpipe (LLVM 15.0.6, 256 bits)".to_owned(),
            driver: "llvmpipe".to_owned(),
            driver_info: "Mesa 22.3.6\n(LLVM 15.0.6)".to_owned(),
            subgroup_min_size: 8,
            subgroup_max_size: 8,
            ..AdapterInfo::new(DeviceType::Cpu, Backend::Vulkan)
        },
        features: Features::SHADER_F16 | Features::SUBGROUP,
        limits: Limits {
            max_buffer_size: (1 << 31) - 1,
            max_storage_buffer_binding_size: 128 << 20,
            ..Limits::default()
        },
        matrices: Vec::new(),
    }
}

#[test]
fn a_software_adapter_says_that_it_is_one() {
    let device = software().device(3);
    assert_eq!(
        device.to_string(),
        "wgpu:3: llvmpipe (LLVM 15.0.6, 256 bits), software adapter (computes on the CPU), \
         Vulkan, f16, subgroups of 8, no cooperative matrix, buffers to 2.0 GiB, bindings to \
         128 MiB, driver llvmpipe Mesa 22.3.6 (LLVM 15.0.6) (not usable: found, but this version \
         has no wgpu kernels yet)"
    );
    assert!(device.software);
    assert_eq!(device.memory, None);
}

#[test]
fn a_gpu_without_anything_special() {
    let facts = Facts {
        info: AdapterInfo {
            name: "Card".to_owned(),
            ..AdapterInfo::new(DeviceType::DiscreteGpu, Backend::Dx12)
        },
        features: Features::empty(),
        ..software()
    };
    let device = facts.device(0);
    assert_eq!(
        device.description,
        "Card, discrete GPU, DX12, no f16, no subgroups, no cooperative matrix, buffers to \
         2.0 GiB, bindings to 128 MiB"
    );
    assert!(!device.software);
}

#[test]
fn cooperative_matrices_are_listed_once_each() {
    let shape = |size, cr_type| CooperativeMatrixProperties {
        m_size: size,
        n_size: size,
        k_size: size,
        ab_type: CooperativeScalarType::F16,
        cr_type,
        saturating_accumulation: false,
    };
    let saturating = CooperativeMatrixProperties {
        saturating_accumulation: true,
        ..shape(16, CooperativeScalarType::F32)
    };
    let facts = Facts {
        features: Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
        matrices: vec![
            shape(8, CooperativeScalarType::F16),
            shape(16, CooperativeScalarType::F32),
            saturating,
        ],
        ..software()
    };
    assert_eq!(
        facts.cooperative_matrix(),
        "cooperative matrix 8x8x8 f16 to f16 | 16x16x16 f16 to f32"
    );
    // The feature without a size is said as it is.
    assert_eq!(Facts { matrices: vec![], ..facts }.cooperative_matrix(), "cooperative matrix");
}

#[test]
fn subgroups_of_several_sizes() {
    let mut facts = software();
    facts.info.subgroup_max_size = 32;
    assert_eq!(facts.subgroups(), "subgroups of 8 to 32");
}

#[test]
fn real_gpus_come_before_software() {
    use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
    let mut kinds = [Cpu, Other, IntegratedGpu, VirtualGpu, DiscreteGpu];
    kinds.sort_by_key(|&kind| rank(kind));
    assert_eq!(kinds, [DiscreteGpu, IntegratedGpu, VirtualGpu, Other, Cpu]);
}

#[test]
fn apis_are_a_list_for_people() {
    assert_eq!(any_of(APIS), "Vulkan, Metal or DX12");
    assert_eq!(any_of(Backends::METAL), "Metal");
    assert_eq!(any_of(Backends::VULKAN | Backends::DX12), "Vulkan or DX12");
    assert_eq!(any_of(Backends::empty()), "Vulkan, Metal or DX12");
}

#[test]
fn a_future_that_waits_is_not_waited_for() {
    assert_eq!(ready(std::future::ready(7)), Some(7));
    assert_eq!(ready(std::future::pending::<u8>()), None);
}
