"""Weights from the trainer to vLLM where both are in one process: vLLM's transfer protocol.

vLLM's own ways (NCCL, CUDA IPC, RDMA) move weights between processes. Within one, tensors are
handed over as they are, and vLLM's layerwise reload copies them in: it takes names and shapes as a
checkpoint has them, fuses and packs what its kernels want fused and packed, and writes into the
memory it had before, which captured CUDA graphs read. Importing this registers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

BACKEND = "searchrl_in_process"
"""What the way is called in vLLM's registry."""


@dataclass
class Beginning(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing has to be agreed on before the first weights come."""


@dataclass
class Weights(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Weights by the names a checkpoint has for them."""

    tensors: Sequence[tuple[str, torch.Tensor]]


class InProcessTransfer(WeightTransferEngine[Beginning, Weights]):  # type: ignore[misc]
    """Loads what it is handed."""

    init_info_cls = Beginning
    update_info_cls = Weights

    def init_transfer_engine(self, init_info: Beginning) -> None:
        """There is no connection to open."""

    def start_weight_update(self) -> None:
        """Make every layer ready for weights as a checkpoint has them."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Weights) -> None:
        """Load some weights."""
        self.model.load_weights(update_info.tensors)

    def finish_weight_update(self) -> None:
        """Make every layer ready to be computed with."""
        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                # Tied to the embedding it gets no weights itself, and would go on with what its
                # kernel packed of the old ones.
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """There is no connection to close."""


WeightTransferEngineFactory.register_engine(BACKEND, InProcessTransfer)
