"""What a vCPU is to its guest: CPUID, the state at power-on, its registers."""
