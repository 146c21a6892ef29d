"""What a runner works with."""

from actors.run.runner import Handler, call_function
from actors.run.runner_actor import RunnerConnections
from actors.tools.model import ModelClient
from actors.tools.registry import Registry, shared_pipelines
from actors.tools.runner import Tools
from events.ask import Asker
from events.deltas import Deltas
from serve.agent_turns import AgentTurns
from serve.booking import Bookings
from serve.bootstrap.connections import keys_of, open_bus, open_objects, open_resilience, open_store, open_vault
from serve.model_steps import ModelSteps
from serve.routing import Routing
from serve.run_history import RunHistory
from serve.sagas import load_sagas
from serve.settings import Settings, tool_configs
from serve.steps import ToolSteps


async def open_runner(name: str) -> RunnerConnections:
    settings = Settings.from_environment()
    load_sagas(settings.sagas)
    vault = await open_vault(settings)
    bus, keys = await open_bus(settings, name), keys_of(settings, vault)
    store, resilience, asker = await open_store(settings), await open_resilience(bus, name), Asker(bus)
    registry = Registry(tool_configs(settings.models), build=shared_pipelines(resilience))
    tools, objects = Tools(asker, registry), open_objects(settings, keys)
    turns = AgentTurns(RunHistory(store, keys).run, objects, registry)
    models = {model.name: model for model in settings.models.models}
    bookings, model_client = Bookings(asker, models.values(), settings.call_timeout_s), ModelClient(None)
    routing = Routing(settings.models, resilience)
    model_steps = ModelSteps(models, bookings, model_client, routing, turns, Deltas(bus), keys)
    handlers: dict[str, Handler] = {
        "function": call_function,
        "tool": ToolSteps(tools, turns),
        "model": model_steps,
    }

    async def close() -> None:
        await tools.close()
        await bookings.drain()
        await model_client.close()
        await store.close()
        await resilience.close()
        await bus.close()
        await vault.close()

    return RunnerConnections(bus, keys, objects, handlers, settings.steps_at_once, close)
