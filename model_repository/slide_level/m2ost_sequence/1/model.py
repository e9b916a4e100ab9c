"""The stage for slides in Triton's Python backend: FEATURES and POSITION of a whole slide → EXPRESSION."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import m2ost_contract as contract
import triton_python_backend_utils as pb_utils
from m2ost_serving import triton
from m2ost_serving.engine import CpuThreads
from m2ost_serving.engine.sequence import SequenceEngine
from m2ost_serving.metrics import Refusals
from m2ost_serving.queueing import Cancelled


class TritonPythonModel:
    """Scores one large slide at a time, and small ones as they come: these never wait for it, nor do probes."""

    def initialize(self, args):
        triton.check_environment()
        release = triton.release_of(Path(args["model_repository"]))
        threads = CpuThreads.from_parameters(triton.parameters(args["model_config"]))
        self._engine = SequenceEngine(release, threads)
        self._large = ThreadPoolExecutor(1, "slide")
        self._refusals = Refusals(triton.metrics(pb_utils, args["model_name"]))
        pb_utils.Logger.log_info(triton.log_line("sequence_loaded", runs_on=self._engine.description))

    def execute(self, requests):
        for request in requests:
            reply = triton.Reply(pb_utils, request, self._refusals)
            try:
                names = (contract.FEATURES, contract.POSITION)
                given = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names]
            except Exception as error:  # its own: the others of the execution are served
                reply.error(error)
                continue
            if len(given[0]) <= contract.MAX_ROWS:
                self._answer(reply, given)
            else:
                # Copies: the tensors' memory is Triton's again when execute returns.
                self._large.submit(self._answer, reply, [array.copy() for array in given])

    def _answer(self, reply, given):
        if reply.is_cancelled():
            reply.error(Cancelled("cancelled"))
        else:
            reply.answer(lambda: [pb_utils.Tensor(contract.EXPRESSION, self._engine.run(*given))])

    def finalize(self):
        self._large.shutdown(cancel_futures=True)
