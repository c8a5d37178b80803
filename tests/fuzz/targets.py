"""Everything that is fuzzed, and its share of the inputs."""

from tests.fuzz.bundle_files import open_bundle_files
from tests.fuzz.connect_calls import open_connect_calls
from tests.fuzz.connections import open_http1, open_http2
from tests.fuzz.grpc_calls import open_grpc_calls
from tests.fuzz.heads import open_heads
from tests.fuzz.image_files import open_image_files
from tests.fuzz.rpcs import open_rpcs
from tests.fuzz.settings_files import open_settings_files
from tests.fuzz.target import Target

TARGETS = (
    Target("http2", 200, open_http2),
    Target("heads", 150, open_heads),
    Target("http1", 100, open_http1),
    Target("grpc", 150, open_grpc_calls),
    Target("rpcs", 160, open_rpcs),
    Target("connect", 100, open_connect_calls),
    Target("images", 85, open_image_files),
    Target("bundle", 50, open_bundle_files),
    Target("settings", 5, open_settings_files),
)
