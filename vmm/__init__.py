"""vmm: a KVM-backed mini virtual machine monitor for people who develop firmware and hypervisors."""
