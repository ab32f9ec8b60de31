"""A GPU for tests of the clocks: it stands in for torch and computes nothing."""

from types import SimpleNamespace

import torch

GPU = torch.device("cuda", 1)


class Gpu:
    """Stands in for torch and logs what is queued; a call takes 3 ms."""

    int8 = torch.int8

    def __init__(self, *, l2=50 << 20, late=False):
        self.log, self.current, self.late, self.l2 = [], None, late, l2
        self.allocated = self.peak = 0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                self.name = f"event {sum(entry == 'made' for entry in gpu.log)}"
                gpu.log.append("made")

            def record(self):
                gpu.queue(f"{self.name} recorded")

            def query(self):
                gpu.log.append(f"{self.name} queried")
                return gpu.late

            def synchronize(self):
                gpu.log.append(f"{self.name} awaited")

            def elapsed_time(self, other):
                gpu.log.append(f"{self.name} to {other.name}")
                return 3.0

        self.cuda = SimpleNamespace(
            Event=Event,
            device=self.device,
            get_device_properties=lambda device: SimpleNamespace(L2_cache_size=l2),
            _sleep=lambda cycles: self.queue(cycles),
            memory_allocated=lambda device: self.allocated,
            max_memory_allocated=lambda device: self.peak,
            reset_peak_memory_stats=self.reset,
            empty_cache=lambda: self.log.append("emptied"),
        )

    @property
    def holds(self):
        return [entry for entry in self.log if isinstance(entry, int)]

    def queue(self, entry):
        assert self.current == GPU
        self.log.append(entry)

    def device(self, device):
        gpu = self

        class Current:
            def __enter__(self):
                gpu.current = device

            def __exit__(self, *error):
                gpu.current = None

        return Current()

    def empty(self, size, *, dtype, device):
        assert (dtype, device) == (torch.int8, GPU)
        self.flushed = size
        return SimpleNamespace(zero_=lambda: self.queue("flush"))

    def reset(self, device):
        assert device == GPU
        self.peak = self.allocated
