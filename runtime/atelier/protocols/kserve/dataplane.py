"""KServe's model registry and data plane, for a server that keeps its one model and asks gRPC
callers for their key."""

from __future__ import annotations

from typing import Any

import kserve
from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferRequest
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from atelier.bounds import check_values
from atelier.errors import Unauthorized
from atelier.protocols.http.access import Keys
from atelier.settings import Settings


class OneModel(kserve.ModelRepository):
    """KServe's registry, for a server that keeps its model until it ends."""

    def unload(self, name: str) -> None:
        """Refuse: an unloaded model could not come back.

        Raises:
            KeyError: there is no such model.
            InvalidInput: there is.
        """
        if name not in self.models:
            raise KeyError(name)
        raise kserve.errors.InvalidInput(
            f"{name}: this server has one model and keeps it; stop the server instead"
        )


class OneModelExtension(ModelRepositoryExtension):
    """KServe's repository routes: loading the model that is here says that it is loaded."""

    async def load(self, model_name: str) -> dict[str, Any]:  # type: ignore[override]
        """What gRPC answers; REST writes its own.

        Raises:
            ModelNotFound: it is another model's name.
            ModelNotReady: it is still loading.
        """
        if model_name not in self._model_registry.get_models():
            raise kserve.errors.ModelNotFound(model_name)
        if not await self._model_registry.is_model_ready(model_name):
            raise kserve.errors.ModelNotReady(model_name)
        return {"name": model_name, "load": True}


class KeyedDataPlane(DataPlane):
    """Checks the key of gRPC calls, which pass no HTTP middleware: in the metadata, as HTTP has it
    in a header."""

    def __init__(self, registry: OneModel, settings: Settings) -> None:
        super().__init__(model_registry=registry)
        self._keys = Keys(settings)

    def decode(self, body: Any, headers: dict[str, str] | None, *more: Any, **named: Any) -> Any:
        """See KServe, whose routes parse what they are sent.

        Raises:
            InvalidRequest: there are too many values in it.
        """
        if isinstance(body, bytes):
            check_values(body)
        return super().decode(body, headers, *more, **named)

    async def infer(
        self, model_name: str, request: Any, headers: dict[str, str] | None = None
    ) -> Any:
        """See KServe.

        Raises:
            GrpcException: no accepted key.
        """
        if isinstance(request, InferRequest) and request.from_grpc:
            try:
                self._keys.check(headers or {})
            except Unauthorized as error:
                raise GrpcException(
                    details=error.message, status_code=StatusCode.UNAUTHENTICATED
                ) from None
        return await super().infer(model_name, request, headers)
