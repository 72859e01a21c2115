"""What the guest orders by a barrier is in that order for other threads of the host, too: for devices and backends."""

import ctypes
import subprocess
import threading

import pytest
from softcpu_rig import NOT_HERE, SoftcpuRig
from vmm._native import ffi

from vmm.softcpu.decision import has_hardware_virtualization

pytestmark = [
    pytest.mark.needs_kvm,
    pytest.mark.skipif(has_hardware_virtualization(), reason=NOT_HERE),
]

THEIRS, OURS, SEEN = 0x100000, 0x100080, 0x200000
ROUNDS = 1_000_000

# As a device does with a ring: it says where it is, then looks whether the driver has gone on.
DEVICE = """
#include <stdint.h>

uint32_t run(volatile uint32_t *guest, volatile uint32_t *device, uint32_t *seen, uint32_t rounds, uint32_t last)
{
    uint32_t round = 1;

    for (; round < rounds && *guest != last; round++) {
        *device = round;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        seen[round] = *guest;
    }
    return round;
}
"""

BARRIERS = {
    "MFENCE": "mov %ecx, (%rbx); mfence",
    "LOCK ADD": "mov %ecx, (%rbx); lock addl $0, -4(%rsp)",
    "LOCK CMPXCHG": "mov %ecx, (%rbx); lock cmpxchg %eax, -4(%rsp)",
    "LOCK CMPXCHG8B": "mov %ecx, (%rbx); mov %rcx, %r8; mov %rbx, %r9; lock cmpxchg8b -8(%rsp); "
    "mov %r8, %rcx; mov %r9, %rbx",
    "XCHG of the word itself": "mov %ecx, %eax; xchg %eax, (%rbx)",
    "LOCK INC of the word itself": "lock incl (%rbx)",
}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The device, compiled: Python's own steps are too far apart."""
    place = tmp_path_factory.mktemp("device")
    source, library = place / "device.c", place / "device.so"
    source.write_text(DEVICE, encoding="ascii")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_barrier_is_one_for_a_device(barrier: str, device: ctypes.CDLL) -> None:
    source = f"""
    main:
        mov ${THEIRS:#x}, %ebx
        mov ${OURS:#x}, %esi
        mov ${SEEN:#x}, %edi
        mov $1, %ecx
        action 1
    1:  imul $4160, %ecx, %edx              # a store that misses the caches holds up the one behind it
        and $0x3fffc0, %edx
        mov %ecx, 0x800000(%rdx)
        {BARRIERS[barrier]}
        mov (%rsi), %edx
        mov %edx, (%rdi, %rcx, 4)
        inc %ecx
        cmp ${ROUNDS}, %ecx
        jb 1b
        movl ${ROUNDS}, (%rbx)
        done
    """
    with SoftcpuRig(source) as rig:
        with ffi.from_buffer(rig.memory.ram) as ram:
            start = int(ffi.cast("uintptr_t", ram))
        device_saw = (ctypes.c_uint32 * (8 * ROUNDS))()
        words = (ctypes.c_void_p(start + THEIRS), ctypes.c_void_p(start + OURS))
        rounds: list[int] = []
        thread = threading.Thread(target=lambda: rounds.append(device.run(*words, device_saw, len(device_saw), ROUNDS)))
        rig.actions[1] = thread.start
        rig.run()
        thread.join()
        guest_saw = memoryview(rig.memory.read(SEEN, 4 * ROUNDS)).cast("I")
        # In round `mine` the guest did not see that the device was in the next one yet, and that did not see the guest.
        missed = [
            mine
            for mine in range(1, ROUNDS)
            if (theirs := guest_saw[mine] + 1) < rounds[0] and device_saw[theirs] < mine
        ]
    assert not missed, f"{len(missed)} of {ROUNDS} rounds, beside {rounds[0]} of the device"
    assert rounds[0] > ROUNDS // 100
