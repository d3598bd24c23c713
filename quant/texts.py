"""Sentences that a model speaks to itself: for calibration, and, disjoint from these, for the quality gate.

Short and long ones in many scripts, with numbers, names and control tags, so that the rows they give look like those
in use. What they say does not matter.
"""

from __future__ import annotations

import os
from pathlib import Path

from octavo.runtime import text
from octavo.runtime.errors import RequestError

MOST_SENTENCES = 256  # of a file: 30,000 rows and more, whose inputs to a layer are held at once
_MOST_BYTES = 16 << 20

CALIBRATION: tuple[str, ...] = (
    "The ferry leaves at a quarter past seven, so we should be at the harbour before it gets dark.",
    "Could you pass me the salt, please? No, the other one, next to the window.",
    "<|emotion:elation|>We did it! After eleven months of trying, the engine finally started on its own.",
    "On 14 March 1998 the river rose by 3.7 metres, and 212 families had to leave their houses overnight.",
    "<|style:whispering|>Keep your voice down. The baby has only just fallen asleep.",
    "Nobody remembered who had planted the walnut tree behind the school, yet every autumn the whole village came "
    "with baskets, ladders and children, and argued until evening about how to share what had fallen.",
    "Yes.",
    "Call 0800 555 0142 between 9 a.m. and 5 p.m., or write to help@example.org.",
    "<|emotion:anger|>I told you twice not to touch that switch, and look what happened!",
    "First <|prosody:pause|> we measure. Then <|prosody:long_pause|> we cut.",
    "He laughed <|sfx:laughter|> until he had to sit down on the stairs.",
    "The committee approved the budget by 7 votes to 2, with Dr. Okonkwo and Ms. Lindqvist abstaining.",
    "<|prosody:speed_fast|>Terms and conditions apply, see the website for details, offer ends on Sunday.",
    "<|prosody:speed_slow|>Breathe in through your nose, hold it, and let it go.",
    "Rain, mostly in the west; sunny spells later; highs of 19 degrees.",
    "What a strange question to ask at two o'clock in the morning.",
    "Der Zug nach Hannover fährt heute von Gleis 8, nicht wie angekündigt von Gleis 3.",
    "Hast du schon gehört, dass die Bäckerei an der Ecke nach vierzig Jahren schließt?",
    "<|emotion:contentment|>Am liebsten sitze ich abends am Fenster, trinke Tee und höre dem Regen zu.",
    "Die Rechnung über 1.249,50 Euro ist bis zum 30. September zu begleichen.",
    "Le marché ouvre à six heures, mais les meilleurs fromages partent avant huit heures.",
    "Je n'aurais jamais cru qu'un si petit jardin puisse donner autant de tomates.",
    "<|emotion:surprise|>Quoi, tu as traversé toute la ville à pied sous cette pluie ?",
    "El tren de alta velocidad tardó dos horas y treinta y cinco minutos en llegar a Sevilla.",
    "Mi abuela guardaba las cartas en una caja azul, ordenadas por año.",
    "<|emotion:enthusiasm|>¡Vengan todos, que la función empieza en cinco minutos!",
    "Se continua a nevicare così, domani mattina il passo resterà chiuso.",
    "Il direttore ha chiesto 25 copie del contratto entro venerdì.",
    "A padaria fica na segunda rua à esquerda, logo depois da farmácia.",
    "O mar estava tão calmo que dava para ver o fundo.",
    "De fietsenmaker zei dat het achterwiel vóór donderdag klaar zou zijn.",
    "Tåget till Göteborg är tolv minuter försenat på grund av ett signalfel.",
    "Kampen ble avgjort i det siste minuttet, og hele byen jublet.",
    "Lumi suli yhdessä yössä, ja aamulla tiet olivat mustat ja kuivat.",
    "Jutro o dziesiątej mamy spotkanie w sprawie remontu dachu.",
    "Nikdo nevěděl, kam se poděly klíče od sklepa, dokud je nenašel pes.",
    "A könyvtár hétfőn zárva van, de kedden este nyolcig nyitva tart.",
    "Trenul pleacă de la linia cinci peste douăzeci de minute.",
    "Köprünün üzerindeki balıkçılar sabahın beşinde oltalarını çoktan atmıştı.",
    "Το λεωφορείο για το λιμάνι περνά κάθε δεκαπέντε λεπτά.",
    "Завтра утром обещают мороз до минус двадцати градусов, одевайтесь теплее.",
    "<|emotion:sadness|>Мы так и не успели попрощаться, и я до сих пор об этом думаю.",
    "Поїзд до Львова відправляється з третьої колії о сьомій сорок.",
    "Библиотеката работи до осем часа вечерта, освен в неделя.",
    "הרכבת האחרונה לחיפה יוצאת בעשר ורבע בלילה.",
    "يفتح المتحف أبوابه في التاسعة صباحا ويغلق في السادسة مساء.",
    "لم أتوقع أن أراك هنا بعد كل هذه السنوات.",
    "قطار ساعت هشت و نیم از سکوی چهار حرکت می‌کند.",
    "कल सुबह नौ बजे बाज़ार के पास वाली दुकान पर मिलते हैं।",
    "आज बारिश की वजह से सड़क पर बहुत पानी भर गया है।",
    "গতকাল রাতে নদীর পাড়ে অনেক মানুষ গান শুনতে এসেছিল।",
    "நாளை காலை ஏழு மணிக்கு பேருந்து புறப்படும்.",
    "พรุ่งนี้เช้าเราจะไปตลาดน้ำกันตอนหกโมงครึ่ง",
    "Chuyến tàu đi Huế sẽ khởi hành lúc tám giờ tối nay.",
    "Besok pagi kami berangkat ke pasar sebelum matahari terbit.",
    "Basi la kwenda Mombasa linaondoka saa mbili asubuhi.",
    "明天下午三点,我们在图书馆门口见面,别忘了带上那本书。",
    "<|emotion:amusement|>他说自己会做饭,结果连鸡蛋都煮糊了。",
    "这座桥建于一九五七年,全长一千六百七十米。",
    "明日の朝は霧が深いので、いつもより早く家を出たほうがいいですよ。",
    "<|style:shouting|>おーい、船が見えたぞ!",
    "三番線の電車は十分ほど遅れております。",
    "내일 오후 두 시에 도서관 앞에서 만나기로 했어요.",
    "비가 그치자 아이들이 모두 마당으로 뛰어나왔다.",
)

GATE: tuple[str, ...] = (
    "When the lamp went out, we found our way down the mountain by the sound of the stream.",
    "Is there a later flight, or do I have to stay the night?",
    "<|emotion:relief|>Thank goodness, the keys were in my coat the whole time.",
    "Flight 482 to Nairobi is now boarding at gate 16; the gate closes in 12 minutes.",
    "<|style:whispering|>Don't turn around now, but I think somebody is following us.",
    "The old clockmaker repaired everything except clocks: radios, kettles, violins, once even a weather vane, and "
    "he was paid mostly in eggs and stories, which he said kept better than money.",
    "No, thank you.",
    "<|prosody:speed_slow|>Turn left at the church, <|prosody:pause|> then follow the wall.",
    "Heute Nachmittag ziehen Gewitter auf, danach kühlt es auf 17 Grad ab.",
    "<|emotion:confusion|>Moment, das verstehe ich nicht. Wer hat dann das Auto gefahren?",
    "La bibliothèque a reçu 340 livres neufs, dont la moitié pour les enfants.",
    "Cuando salió el sol, el mercado ya estaba lleno de gente.",
    "Domani il museo apre alle dieci e chiude alle diciannove.",
    "Ontem à noite faltou luz em todo o bairro durante duas horas.",
    "Pociąg z Krakowa przyjedzie z trzydziestominutowym opóźnieniem.",
    "Akşam yemeğinden sonra sahilde yürüyüşe çıktık.",
    "Старый мост закрыли на ремонт до конца октября.",
    "تأخرت الطائرة ساعتين بسبب الضباب الكثيف.",
    "शाम को बच्चों ने छत पर पतंग उड़ाई।",
    "Sáng nay trời nhiều sương mù nên đường rất khó đi.",
    "昨天晚上下了一场大雪,今天早上整个城市都很安静。",
    "駅前の本屋は来週の月曜日から改装のため休業します。",
    "버스가 너무 늦게 와서 우리는 그냥 걸어가기로 했다.",
    "<|emotion:enthusiasm|>Wait until you hear this: they have found water, and plenty of it!",
)


def read(path: str | os.PathLike) -> list[str]:
    """The sentences of a UTF-8 text file, one a line; empty lines are left out.

    Raises RequestError for a file that cannot be read, holds no sentence or too many, or a line that cannot be spoken.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:  # a pipe has no size that could be asked for
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise RequestError(
                f"{path} has more than {_MOST_BYTES / 1e6:.0f} MB. Give a text file with one sentence a line."
            )
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read: {error.strerror}. Give a text file, one sentence a line."
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text. Save it as UTF-8, one sentence a line.") from error
    sentences = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            sentences.append(text.clean(line).text)
        except RequestError as error:
            raise RequestError(f"Line {number} of {path} cannot be spoken. {error}") from error
    if not 0 < len(sentences) <= MOST_SENTENCES:
        raise RequestError(f"{path} holds {len(sentences)} sentences. Give 1 to {MOST_SENTENCES}, one a line.")
    return sentences
