"""What people in our markets write for their time zone, and the IANA name of it. Called by schedule.py for its advice.

The database names one city a zone: most of the large cities here are not in it.
"""

from __future__ import annotations

SOME_ZONE = "Asia/Jakarta"

_WRITTEN = {
    "Asia/Jakarta": (
        *("wib", "indonesia", "java", "sumatra", "bandung", "bekasi", "tangerang", "depok", "bogor", "semarang"),
        *("surabaya", "malang", "solo", "surakarta", "yogyakarta", "jogja", "jogjakarta", "medan", "palembang"),
        *("pekanbaru", "padang", "batam", "lampung", "bandar_lampung", "jambi", "bengkulu", "banda_aceh"),
    ),
    "Asia/Makassar": (
        *("wita", "bali", "denpasar", "ubud", "lombok", "mataram", "kupang", "flores", "manado", "palu", "kendari"),
        *("sulawesi", "balikpapan", "samarinda", "banjarmasin", "tarakan"),
    ),
    "Asia/Jayapura": ("wit", "papua", "ambon", "maluku", "ternate", "sorong", "manokwari", "merauke", "timika"),
    "Asia/Manila": (
        *("pht", "phst", "philippines", "metro_manila", "quezon_city", "makati", "taguig", "pasig", "caloocan"),
        *("cebu", "cebu_city", "davao", "davao_city", "baguio", "iloilo", "bacolod", "zamboanga", "cagayan_de_oro"),
    ),
    "Asia/Ho_Chi_Minh": (
        *("vietnam", "viet_nam", "hanoi", "ha_noi", "hcmc", "ho_chi_minh_city", "saigon", "sai_gon", "da_nang"),
        *("danang", "hai_phong", "haiphong", "can_tho", "hue", "nha_trang", "da_lat", "dalat", "vung_tau"),
    ),
    "Asia/Bangkok": (
        *("ict", "thailand", "krung_thep", "chiang_mai", "chiangmai", "chiang_rai", "phuket", "pattaya", "hat_yai"),
        *("khon_kaen", "korat", "nakhon_ratchasima", "udon_thani", "nonthaburi", "hua_hin"),
    ),
    "Asia/Kuala_Lumpur": (
        *("myt", "malaysia", "kl", "penang", "pulau_pinang", "george_town", "georgetown", "johor", "johor_bahru"),
        *("malacca", "melaka", "ipoh", "perak", "selangor", "petaling_jaya", "shah_alam", "putrajaya", "langkawi"),
    ),
    "Asia/Kuching": ("sabah", "sarawak", "kota_kinabalu", "sandakan", "miri", "sibu", "borneo"),
    "Asia/Singapore": ("sgt", "sg"),
    "Asia/Hong_Kong": ("hkt",),
    "Asia/Tokyo": ("jst", "osaka", "kyoto"),
    "Asia/Kolkata": ("ist", "mumbai", "delhi", "new_delhi", "bangalore", "bengaluru", "chennai"),
    "Asia/Shanghai": ("beijing", "shenzhen", "guangzhou"),
}
FAMILIAR_ZONES = {written: zone for zone, names in _WRITTEN.items() for written in names}

# Which of ours keep an offset from UTC, for who writes one.
ZONES_AT = {
    "+7": "Asia/Jakarta, Asia/Bangkok or Asia/Ho_Chi_Minh",
    "+8": "Asia/Manila, Asia/Singapore, Asia/Kuala_Lumpur or Asia/Makassar",
    "+9": "Asia/Jayapura",
}
