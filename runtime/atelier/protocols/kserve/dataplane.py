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
from atelier.errors import ModelUnknown, Unauthorized, shown
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


class OtherModel(ModelUnknown, kserve.errors.ModelNotFound):
    """To KServe's gRPC it is the error that it knows; over HTTP it is told as ours are, where
    KServe would write a traceback into the log."""

    def __init__(self, name: str, here: list[str]) -> None:
        self.reason = f"there is no model {shown(name)} here; this server has {', '.join(here)}"
        ModelUnknown.__init__(self, self.reason)


class KeyedDataPlane(DataPlane):
    """Checks the key of gRPC calls, which pass no HTTP middleware: in the metadata, as HTTP has it
    in a header. And says which model there is to those who ask for another."""

    def __init__(self, registry: OneModel, settings: Settings) -> None:
        super().__init__(model_registry=registry)
        self._keys = Keys(settings)

    def get_model_from_registry(self, name: str) -> Any:
        """See KServe. Raises OtherModel."""
        self._check(name)
        return super().get_model_from_registry(name)

    async def get_model(self, name: str) -> Any:
        """See KServe. Raises OtherModel."""
        self._check(name)
        return await super().get_model(name)

    async def model_ready(self, model_name: str, *more: Any, **named: Any) -> bool:
        """See KServe. Raises OtherModel."""
        self._check(model_name)
        return bool(await super().model_ready(model_name, *more, **named))

    def _check(self, name: str) -> None:
        models = self._model_registry.get_models()
        if name not in models:
            raise OtherModel(name, list(models))

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
