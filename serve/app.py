"""The gateway as a Ray Serve application."""

from typing import Any, cast

from ray import serve as ray_serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from serve.gateway import Gateway
from serve.local_servers import LOOPBACK
from serve.ray_runtime import run_application

APP_NAME = "tenantry"
_ONGOING_MAX = 1_000  # streams are long and mostly wait
_QUEUED_MAX = 1_000
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


def gateway_app(replicas: int) -> Any:
    """The application to ``serve.run``. Its replicas read their settings from the environment they inherit."""
    gateway = Gateway()

    @ray_serve.deployment(
        name="gateway",
        num_replicas=replicas,
        max_ongoing_requests=_ONGOING_MAX,
        max_queued_requests=_QUEUED_MAX,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1.0),
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,  # a dead replica is replaced at the next check
        ray_actor_options={"num_cpus": 0},
        logging_config=_QUIET,
    )
    @ray_serve.ingress(gateway)
    class GatewayDeployment:
        async def check_health(self) -> None:
            """Only a replica that can't open its connections is unhealthy; a busy one is not."""
            await gateway.ready()
            await gateway.open_door(_ONGOING_MAX)

        async def __del__(self) -> None:
            await gateway.close()

    return cast("Any", GatewayDeployment).bind()


def deploy_gateway(port: int, *, host: str = LOOPBACK, replicas: int = 1) -> None:
    """Start Serve's proxy on ``host:port`` and the gateway behind it; returns when it can serve."""
    run_application(gateway_app(replicas), APP_NAME, host=host, port=port, ready_path="/readyz")
