"""Shared memory methods of inference.GRPCInferenceService: status, register and unregister."""

from collections.abc import Sequence

from serving.errors import Unsupported
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.routes import Call, Rpc, Unary

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class SharedMemoryService:
    """Registers memory that clients share with the server. GPU memory is not supported.

    Each token has its own regions: it neither sees nor changes those of others.
    """

    def __init__(self, regions: Regions) -> None:
        self._regions = regions

    def rpcs(self) -> Sequence[Rpc]:
        """The RPCs of this service."""
        system, cuda = (f"/{_SERVICE}/{kind}SharedMemory" for kind in ("System", "Cuda"))
        return (
            Unary(f"{system}Status", pb.SystemSharedMemoryStatusRequest, self.status),
            Unary(f"{system}Register", pb.SystemSharedMemoryRegisterRequest, self.register),
            Unary(f"{system}Unregister", pb.SystemSharedMemoryUnregisterRequest, self.unregister),
            Unary(f"{cuda}Status", pb.CudaSharedMemoryStatusRequest, self.cuda_status),
            Unary(f"{cuda}Register", pb.CudaSharedMemoryRegisterRequest, self.cuda_register),
            Unary(f"{cuda}Unregister", pb.CudaSharedMemoryUnregisterRequest, self.cuda_unregister),
        )

    async def status(
        self, request: pb.SystemSharedMemoryStatusRequest, call: Call
    ) -> pb.SystemSharedMemoryStatusResponse:
        """List one region, or all regions if the name is empty."""
        status = pb.SystemSharedMemoryStatusResponse.RegionStatus
        regions = {
            each.name: status(name=each.name, key=each.key, offset=each.offset, byte_size=each.byte_size)
            for each in self._regions.of(call.owner).registered(request.name)
        }
        return pb.SystemSharedMemoryStatusResponse(regions=regions)

    async def register(
        self, request: pb.SystemSharedMemoryRegisterRequest, call: Call
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Register a part of a shared memory object for use in requests."""
        self._regions.of(call.owner).register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: Call
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Unregister one region, or all regions if the name is empty."""
        self._regions.of(call.owner).unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(
        self, _request: pb.CudaSharedMemoryStatusRequest, _call: Call
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Return an empty list: CUDA regions cannot be registered."""
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(
        self, _request: pb.CudaSharedMemoryRegisterRequest, _call: Call
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Always fail: CUDA shared memory is not supported."""
        raise Unsupported("CUDA shared memory is not supported: send the tensor, or use system shared memory")

    async def cuda_unregister(
        self, _request: pb.CudaSharedMemoryUnregisterRequest, _call: Call
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Do nothing: clients unregister all regions before they start, as a precaution."""
        return pb.CudaSharedMemoryUnregisterResponse()
