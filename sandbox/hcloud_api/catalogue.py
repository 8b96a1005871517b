"""
What can be ordered: locations, server types and images.

Which server types there are, and where, follows https://github.com/hetznercloud/cli/issues/1322 (April
2026); ids and sizes were not compared with a live account. Prices are left out: they are an account's and
a day's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EU = ("fsn1", "nbg1", "hel1")
US = ("ash", "hil")
ASIA = ("sin",)

TIB = 2**40


@dataclass(frozen=True)
class Location:
    """A place with servers; ``included_traffic`` is what a server there may send in a month, in bytes."""

    id: int
    name: str
    description: str
    country: str
    city: str
    latitude: float
    longitude: float
    network_zone: str
    included_traffic: int

    def shown(self) -> dict[str, Any]:
        """Return the location as the API has it."""
        return {
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "country": self.country,
            "city": self.city,
            "latitude": self.latitude,
            "longitude": self.longitude,
            "network_zone": self.network_zone,
        }


LOCATIONS = {
    location.name: location
    for location in (
        Location(
            1,
            "fsn1",
            "Falkenstein DC Park 1",
            "DE",
            "Falkenstein",
            50.47612,
            12.370071,
            "eu-central",
            20 * TIB,
        ),
        Location(
            2, "nbg1", "Nuremberg DC Park 1", "DE", "Nuremberg", 49.452102, 11.076665, "eu-central", 20 * TIB
        ),
        Location(
            3, "hel1", "Helsinki DC Park 1", "FI", "Helsinki", 60.169855, 24.938379, "eu-central", 20 * TIB
        ),
        Location(4, "ash", "Ashburn, VA", "US", "Ashburn, VA", 39.045821, -77.487073, "us-east", TIB),
        Location(5, "hil", "Hillsboro, OR", "US", "Hillsboro, OR", 45.54222, -122.951924, "us-west", TIB),
        Location(6, "sin", "Singapore", "SG", "Singapore", 1.283333, 103.833333, "ap-southeast", TIB // 2),
    )
}


@dataclass(frozen=True)
class ServerType:
    """A size of server; ``memory`` and ``disk`` are in GB."""

    id: int
    name: str
    cores: int
    memory: int
    disk: int
    locations: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """Return ``arm`` or ``x86``, as the API names them."""
        return "arm" if self.name.startswith("cax") else "x86"

    @property
    def cpu_type(self) -> str:
        """Return whether its cores are its own."""
        return "dedicated" if self.name.startswith("ccx") else "shared"

    @property
    def category(self) -> str:
        """Return the family it is sold under."""
        if self.cpu_type == "dedicated":
            return "General Purpose"
        return "Regular Performance" if self.name.startswith("cpx") else "Cost-Optimized"

    def shown(self) -> dict[str, Any]:
        """Return the server type as the API has it."""
        return {
            "id": self.id,
            "name": self.name,
            "description": self.name.upper(),
            "category": self.category,
            "cores": self.cores,
            "memory": float(self.memory),
            "disk": self.disk,
            "storage_type": "local",
            "cpu_type": self.cpu_type,
            "architecture": self.architecture,
            "included_traffic": 0,
            "prices": [],
            "deprecated": False,
            "deprecation": None,
            "locations": [
                {
                    "id": LOCATIONS[name].id,
                    "name": name,
                    "deprecation": None,
                    "recommended": True,
                    "available": True,
                }
                for name in self.locations
            ],
        }


SERVER_TYPES = {
    server_type.name: server_type
    for server_type in (
        ServerType(22, "cpx11", 2, 2, 40, US),
        ServerType(23, "cpx21", 3, 4, 80, US),
        ServerType(24, "cpx31", 4, 8, 160, US),
        ServerType(25, "cpx41", 8, 16, 240, US),
        ServerType(26, "cpx51", 16, 32, 360, US),
        ServerType(45, "cax11", 2, 4, 40, EU),
        ServerType(93, "cax21", 4, 8, 80, EU),
        ServerType(94, "cax31", 8, 16, 160, EU),
        ServerType(95, "cax41", 16, 32, 320, EU),
        ServerType(96, "ccx13", 2, 8, 80, EU + US + ASIA),
        ServerType(97, "ccx23", 4, 16, 160, EU + US + ASIA),
        ServerType(98, "ccx33", 8, 32, 240, EU + US + ASIA),
        ServerType(99, "ccx43", 16, 64, 360, EU + US + ASIA),
        ServerType(100, "ccx53", 32, 128, 600, EU + US + ASIA),
        ServerType(101, "ccx63", 48, 192, 960, EU + US + ASIA),
        ServerType(108, "cpx12", 1, 2, 40, EU + ASIA),
        ServerType(109, "cpx22", 2, 4, 80, EU + ASIA),
        ServerType(110, "cpx32", 4, 8, 160, EU + ASIA),
        ServerType(111, "cpx42", 8, 16, 320, EU + ASIA),
        ServerType(112, "cpx52", 12, 24, 480, EU + ASIA),
        ServerType(113, "cpx62", 16, 32, 640, EU + ASIA),
        ServerType(114, "cx23", 2, 4, 40, EU),
        ServerType(115, "cx33", 4, 8, 80, EU),
        ServerType(116, "cx43", 8, 16, 160, EU),
        ServerType(117, "cx53", 16, 32, 320, EU),
    )
}


@dataclass(frozen=True)
class Image:
    """An operating system; images of one name differ by architecture."""

    id: int
    name: str
    description: str
    os_flavor: str
    os_version: str
    architecture: str
    created: str

    def shown(self) -> dict[str, Any]:
        """Return the image as the API has it."""
        return {
            "id": self.id,
            "type": "system",
            "status": "available",
            "name": self.name,
            "description": self.description,
            "image_size": None,
            "disk_size": 5.0,
            "created": self.created,
            "created_from": None,
            "bound_to": None,
            "os_flavor": self.os_flavor,
            "os_version": self.os_version,
            "rapid_deploy": True,
            "protection": {"delete": False},
            "deprecated": None,
            "deleted": None,
            "labels": {},
            "architecture": self.architecture,
        }


IMAGES = {
    image.id: image
    for image in (
        Image(114690387, "debian-12", "Debian 12", "debian", "12", "x86", "2023-06-13T06:00:05Z"),
        Image(114690389, "debian-12", "Debian 12", "debian", "12", "arm", "2023-06-13T06:00:27Z"),
        Image(161547269, "ubuntu-24.04", "Ubuntu 24.04", "ubuntu", "24.04", "x86", "2024-04-25T13:26:27Z"),
        Image(161547270, "ubuntu-24.04", "Ubuntu 24.04", "ubuntu", "24.04", "arm", "2024-04-25T13:26:51Z"),
        Image(310557660, "debian-13", "Debian 13", "debian", "13", "x86", "2025-08-12T05:00:00Z"),
        Image(310557661, "debian-13", "Debian 13", "debian", "13", "arm", "2025-08-12T05:00:00Z"),
    )
}


def location_of(identity: str) -> Location | None:
    """Return a location by ID or name."""
    by_id = (location for location in LOCATIONS.values() if str(location.id) == identity)
    return LOCATIONS.get(identity) or next(by_id, None)


def server_type_of(identity: str) -> ServerType | None:
    """Return a server type by ID or name."""
    by_id = (server_type for server_type in SERVER_TYPES.values() if str(server_type.id) == identity)
    return SERVER_TYPES.get(identity) or next(by_id, None)


def image_of(identity: str, architecture: str) -> Image | None:
    """Return an image for an architecture by ID or name, or None if there is none for that architecture."""
    for image in IMAGES.values():
        if identity in (str(image.id), image.name) and image.architecture == architecture:
            return image
    return None
