"""Names, mail addresses and references as people have them, and what nobody is called. One table for every way in."""

from __future__ import annotations

NAMES = (
    # Thai: vowels and tone marks are characters of their own, above and below.
    *("สมชาย ใจดี", "กัลยา ณ เชียงใหม่", "พิชญ์สินี ลิ้มปิติ", "ณัฐวุฒิ", "น้ำผึ้ง", "ปู่ย่า", "ธีรภัทร์ เจริญสุข"),
    # Vietnamese, composed and decomposed.
    *("Nguyễn Thị Minh Khai", "Trần Đức Lương", "Lê Thị Hồng Gấm", "Võ Nguyên Giáp", "Nguye\u0302\u0303n Va\u0306n A"),
    # Indonesia, Malaysia, Singapore, the Philippines.
    *("Suharto", "Ni Luh Putu Ayu", "I Gusti Ngurah Rai", "R.A. Kartini", "H. Abdul Malik Karim Amrullah, S.H."),
    *("Raden Mas Said (Sambernyowo)", "Siti binti Abdullah", "Muthu a/l Krishnan", "Devi a/p Raman", "Tan Ah Kow @ Tan Kim"),
    *("Dato' Lee Chong Wei", "Ma. Corazon Dela Cruz-Reyes", "José Rizal y Alonso", "Niño Muñoz", "Juan Dela Cruz Jr.", "Ng"),
    # Apostrophes, hyphens, dots, digits, single letters.
    *("Seán O'Neill", "D\u2019Angelo Russell", "Anne-Marie", "J. R. R. Tolkien", "Renée", "Henry VIII", "X Æ A-12", "O"),
    *("7", "Ana 2", "3M Philippines, Inc.", "PT. Maju & Jaya", "AT&T", "Toko \u201cMurah\u201d", "50% Off Store", "a"),
    # Other scripts.
    *("李小龍", "山田太郎", "ｻﾄｳ ﾊﾅｺ", "山田\u3000花子", "김철수", "Владимир", "Ελένη", "محمد بن سلمان", "מֹשֶׁה כהן"),
    *("अनिल कुमार", "শেখ মুজিবুর", "தமிழ்ச்செல்வன்", "ශ්\u200dරී ලංකා", "क्\u200dष", "می\u200cخواهم", "အောင်ဆန်းစုကြည်", "ភូមិន្ទ"),
    *("ຈັນທາ", "ཚེ་རིང", "ნინო", "Հայկ", "አበበ", "𠮷野家", "葛\U000e0100城"),
    # What is no letter and may stand in a shop's or a plan's name.
    *("Café ☕", "Gold ★★★", "Family 👨\u200d👩\u200d👧", "Vàng ☕️", "Ana\u00a0Putri", "A\u0301", "É" * 100, "ก" + "็" * 20),
    "A" * 100,
    *("Robert'); DROP TABLE customers;--", "<script>alert(1)</script>", "{{name}}", "%s %n", "null", "-", "C:\\Users", "`id`"),
)  # fmt: skip

NO_NAMES = (
    *("", " ", "\u3000", "A" * 101, "É" * 200),
    # Controls: C0, delete, C1; an escape code, a title, a bell, an overwritten line, several lines.
    *("Ana\x00", "\x1b[31mAna\x1b[0m", "\x1b]0;owned\x07", "Ana\x07", "Ana\b\b\bEva", "Ana\rEva", "Ana\nEva", "Ana\tPutri"),
    *("Ana\x7f", "Ana\x85Eva", "\x9b31mAna", "Ana\x0b", "Ana\x0c"),
    # Lines and paragraphs; the direction of reading turned.
    *("Ana\u2028Eva", "Ana\u2029", "Ana\u202eavE", "\u202aAna", "Ana\u202c", "\u2066Ana\u2069", "\u2067Ana", "Ana\u200e"),
    # What nobody sees.
    *("Ana\u200b", "A\u00adna", "Ana\ufeff", "\u2060Ana", "\u3164", "Ana\u034f", "\u2800", "Ana\U000e0041", "Ana\u206a"),
    # Joiners where nothing is joined.
    *("\u200dAna", "Ana\u200cPutri", "A\u200d", "Ana \u200b\u200b"),
)  # fmt: skip

EMAILS = (
    *("ana@example.com", "a@b.co", "ana.putri@mail.example.co.id", "ana+billing@example.com", "ana_putri-2@example.com"),
    *("o'neill@example.com", "ANA@EXAMPLE.COM", "1@2.id", "ana!#$%&*/=?^`{|}~@example.com", "ana..p@docomo.ne.jp"),
    *("ana@xn--bcher-kva.example", "ana@bücher.example", "สมชาย@คนไทย.ไทย", "用户@例え.jp", "ana@a-b.example", "ana@1.example"),
    *('"ana putri"@example.com', '"ana@home"@example.com', '"a\\"b"@example.com', "a" * 38 + "@example.com"),
)  # fmt: skip

NO_EMAILS = (
    *("", "ana", "ana@", "@example.com", "ana@localhost", "ana@example", "ana@example..com", "ana@.example.com"),
    *("ana@example.com.", "ana putri@example.com", "ana@exam ple.com", "ana@@example.com", "ana@b@example.com"),
    *("a@example.com,b@example.com", "a@example.com;b@example.com", "Ana <ana@example.com>", "mailto:ana@example.com"),
    *("<ana@example.com>", "ana@-example.com", "ana@example-.com", "ana@[127.0.0.1]", "ana@exam_ple.com", '"ana@example.com'),
    *("ana@example.com\n", "ana\r\nBcc: x@example.com", "ana@example.com\x00", "\x1b[31mana@example.com", " ana@example.com"),
    *("ana@example.com\u200b", "ana\u202e@example.com", "ana@ex\u00a0ample.com", "a" * 39 + "@example.com"),
)  # fmt: skip

REFERENCES = ("a", "7", "ana", "cust-1001", "ana@example.com", "A.b_c:d+e-f", "0" * 100)
NO_REFERENCES = (
    *("", "-ana", ".", "a b", "a/b", "ana\n", "ana\x1b[0m", "é", "สมชาย", "a\u200b", "١", "a" * 101, "a'b", "a;b", "a,b"),
    *(f"{kind}-{'0199' * 8}" for kind in ("cus", "sub", "plan", "tok", "SUB")),
)  # fmt: skip
